"""Long real documents (code, proofs, prose) from pinned packages of PyPI and Debian."""

from fot_jax.data.corpora.build import build_corpora as build_corpora
from fot_jax.data.corpora.catalogue import CORPORA as CORPORA
