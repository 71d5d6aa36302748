"""Notices of fallbacks, each logged once, by name."""

import functools
import logging

logger = logging.getLogger("fot_jax")


@functools.cache
def notice_once(name: str, message: str) -> None:
    """Logs the warning `name: message`, once per process."""
    logger.warning("%s: %s", name, message)
