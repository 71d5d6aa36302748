"""Runs of the training loop in this process."""

import jax

from fot_jax.train import loop


def run(config, workdir, **arguments):
    """One run on one device; returns its lines and outcome."""
    lines = []
    log = arguments.pop("log", None)

    def keep(line):
        lines.append(line)
        if log:
            log(line)

    outcome = loop.train(config, workdir=workdir, devices=jax.devices()[:1], log=keep, **arguments)
    return lines, outcome
