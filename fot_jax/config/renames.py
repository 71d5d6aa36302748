"""Config fields under their former names: saved runs that have them still load."""

from collections.abc import Mapping
from typing import Any

from fot_jax.logging import warn_once

# Former path -> the field's name today, in the same section.
RENAMED = {
    "crossbatch.logn_from": "log_length_scaling_from",
    "memory.logn_from": "log_length_scaling_from",
}


def with_current_names(values: Any) -> Any:
    """Returns the mapping of a saved experiment with each former name replaced, logged once by name.

    Where a section has both names, the former one stays, and building the config refuses it.
    """
    if not isinstance(values, Mapping):
        return values
    found = dict(values)
    for path, name in RENAMED.items():
        section, former = path.split(".")
        fields = found.get(section)
        if isinstance(fields, Mapping) and former in fields and name not in fields:
            warn_once(path, f"this field of the saved config is {section}.{name} now")
            found[section] = {name if key == former else key: value for key, value in fields.items()}
    return found
