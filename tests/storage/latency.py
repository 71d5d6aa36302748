"""Trains, resumes and prints how long storage took: `python -m tests.storage.latency WORKDIR`."""

import dataclasses
import itertools
import json
import statistics
import sys
import time

import jax

from fot_jax import checkpoint
from fot_jax.train import loop
from fot_jax.train.recorder import Recorder
from fot_jax.train.saver import Saver
from tests.train.tiny import tiny

STEPS, EVERY = 120, 40
WIDE = {"model__embed_dim": 64, "model__mlp_dim": 512, "model__num_layers": 8, "model__memory_layers": [3]}


class Times(dict[str, list[float]]):
    """Seconds of every call, by name."""

    def wrap(self, owner: object, function: str, name: str) -> None:
        """Times the calls of a function."""
        inner = getattr(owner, function)

        def timed(*args, **kwargs):
            start = time.monotonic()
            try:
                return inner(*args, **kwargs)
            finally:
                self.setdefault(name, []).append(time.monotonic() - start)

        setattr(owner, function, timed)


def main(workdir: str) -> None:
    """Prints JSON: MiB of a checkpoint; seconds that a save blocks, that opening and restoring take; of a step."""
    times, begun = Times(), []
    times.wrap(Saver, "save", "save blocks")
    times.wrap(Saver, "wait", "wait for the last save")
    times.wrap(checkpoint.Checkpointer, "__init__", "open")
    times.wrap(loop, "_restore", "restore")
    times.wrap(loop, "train", "train")
    begin = Recorder.begin

    def noted(self, *args, **kwargs):
        begun.append(time.monotonic())
        return begin(self, *args, **kwargs)

    Recorder.begin = noted
    config = tiny(**WIDE, train__steps=STEPS, train__checkpoint_every=EVERY)
    say = {"workdir": workdir, "devices": jax.devices()[:1], "log": lambda line: None}
    loop.train(config, **say)
    steps = (later - earlier for earlier, later in itertools.pairwise(begun))
    more = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=STEPS + 1))
    loop.train(more, allow_changes=["train.steps"], **say)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(checkpoint.load_params(workdir)[1])) * 3
    found = {name: [round(each, 3) for each in values] for name, values in times.items()}
    print(json.dumps({"MiB": round(stored / 2**20, 1), "step": round(statistics.median(steps), 4), **found}))


if __name__ == "__main__":
    main(sys.argv[1])
