"""A tiny experiment on text files, for the hostile tour; FOT_TOUR names the folder of its corpus."""

import os
from pathlib import Path

from ml_collections import config_dict

from fot_jax.config.build import to_dict
from tests.train.tiny import tiny


def get_config() -> config_dict.ConfigDict:
    """Bytes of text, two steps."""
    root = Path(os.environ["FOT_TOUR"])
    source = {"name": "text", "kind": "text", "path": str(root / "corpus" / "*.txt")}
    data = {"sources": [source], "cache_dir": str(root / "cache")}
    return config_dict.ConfigDict(to_dict(tiny(data=data, model__vocab_size=259, train__steps=2)))
