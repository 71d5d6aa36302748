"""Notices of fallbacks and guesses, each logged once per process."""

import functools
import logging

logger = logging.getLogger("fot_jax")


@functools.cache
def warn_once(name: str, message: str) -> None:
    """Logs the warning `name: message`."""
    logger.warning("%s: %s", name, message)


@functools.cache
def info_once(message: str) -> None:
    """Logs the message as information."""
    logger.info("%s", message)
