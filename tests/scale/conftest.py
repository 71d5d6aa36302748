"""The programs of these tests are compiled once a session, without most optimisations."""

from tests.train.conftest import _compiled, _quick_compiles  # noqa: F401
