"""The config file of `tests/train/tiny.py`, for commands run as separate processes."""

from ml_collections import config_dict

from fot_jax.config.build import to_dict
from tests.train.tiny import tiny


def get_config() -> config_dict.ConfigDict:
    """Dictionary lookup on two layers."""
    return config_dict.ConfigDict(to_dict(tiny(model__attention="blockwise")))
