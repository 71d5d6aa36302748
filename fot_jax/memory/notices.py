"""Fallbacks speak once: each is logged a single time, by name."""

import functools
import logging

logger = logging.getLogger("fot_jax")


@functools.cache
def notice_once(name: str, message: str) -> None:
    """Logs a warning `name: message`; the same pair never again in this process."""
    logger.warning("%s: %s", name, message)
