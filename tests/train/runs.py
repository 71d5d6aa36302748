"""Runs of the training loop in this process."""

import jax

from fot_jax.train import loop


def run(config, workdir, **arguments):
    """One run on one device; returns its lines and outcome."""
    lines = []
    say = arguments.pop("say", None)

    def keep(line):
        lines.append(line)
        if say:
            say(line)

    outcome = loop.train(config, workdir=workdir, devices=jax.devices()[:1], say=keep, **arguments)
    return lines, outcome
