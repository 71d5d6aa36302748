"""Optional packages: the extra of `pip install 'fot_jax[EXTRA]'` that installs each, and the error without it.

    data       token caches (seqio, TensorFlow), TFRecord, Parquet, .zst
    scann      memory.retrieval = "scann"
    convert    checkpoints of Hugging Face (safetensors) and llama.cpp (gguf)
    plots      the plots of evaluations
    gcs        runs and data in a bucket (gs://)
    all        the five of them

A model is loaded, reads a text and is trained on an existing token cache without any of them.
"""

import contextlib
from collections.abc import Iterator

from fot_jax.config import UserError

# The modules that each extra of pyproject.toml installs; `all` has every one.
EXTRAS = {
    "data": ("tensorflow", "tensorflow_text", "seqio", "pyarrow", "zstandard"),
    "scann": ("scann",),
    "convert": ("safetensors", "gguf"),
    "plots": ("matplotlib",),
    "gcs": ("gcsfs", "google.cloud.storage"),
}


@contextlib.contextmanager
def needs(extra: str, feature: str, *, otherwise: str = "") -> Iterator[None]:
    """Turns a failed import inside the block into one line that names the package and its install line.

        with needs("plots", "A plot"):
            import matplotlib

    Args:
      extra: a key of EXTRAS; the block imports its modules and nothing of ours.
      feature: what the modules are imported for, the subject of the message.
      otherwise: another way out, as "choose 'exact'".

    Raises:
      UserError: a module of the extra is not installed, or cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and module in EXTRAS[extra]:
            got, command = f"{module}, which is not installed", "pip install"
        else:
            reason = " ".join(str(error).split())
            got = f"{', '.join(EXTRAS[extra])}, but an import failed ({reason})"
            command = "pip install --force-reinstall"
        way_out = f", or {otherwise}" if otherwise else ""
        raise UserError(f"{feature} needs {got}: {command} 'fot_jax[{extra}]'{way_out}.") from error
