"""Report of `launch.explain --retrieval-layers`: table, heat map and proposal of `fot_jax/eval/retrieval_layers.py`."""

from typing import Literal

import numpy as np

from fot_jax.checkpoint import load_params
from fot_jax.data.vocabulary import load_vocabulary
from fot_jax.eval import retrieval_layers
from fot_jax.eval.plots import Panel, plot_map
from fot_jax.eval.report import Cell, Report, Table
from fot_jax.storage.paths import StoragePath

PLOT = "retrieval_layers.png"


def retrieval_report(
    workdir: StoragePath,
    *,
    step: int | Literal["latest", "best"],
    length: int,
    trials: int,
    least: float,
    directory: StoragePath,
) -> Report:
    """Measures a run's model and proposes memory layers: those whose best head has a mass of at least `least`.

    Raises:
      UserError: no such run or checkpoint, or a vocabulary or length that cannot be measured.
    """
    config, params, at = load_params(workdir, step=step)
    vocabulary = load_vocabulary(config.data.vocabulary, config.data.dictionary)
    found = retrieval_layers.measure(
        params, config.model, vocabulary=vocabulary, length=length, trials=trials, seed=config.seed
    )
    best = found.mass.max(axis=1)
    subtitle = f"{trials} passkey prompts of {length} tokens in one window"
    panel = Panel(title="Attention from the answer to the key", subtitle=subtitle, x_label="head", y_label="layer")
    plot_map(directory / PLOT, values=found.mass, panel=panel)
    proposed = found.layers(least=least)
    rows: list[tuple[Cell, ...]] = [
        (layer, float(best[layer]), int(found.mass[layer].argmax()), "proposed" if layer in proposed else "")
        for layer in np.argsort(-best, kind="stable").tolist()
    ]
    names = ",".join(map(str, proposed)) or "none"
    method = (
        f"Step {at} of {workdir}. {subtitle}, the right answer appended to the prompt, memory off; the attention of the"
        " queries that predict the answer's tokens on the key's tokens in the prompt, averaged over queries and"
        f" prompts. Of the answer's tokens {found.accuracy:.1%} were predicted. Layers whose best head has at least"
        f" {least:g}: --config.model.memory_layers={names}"
    )
    return Report(
        task="retrieval_layers",
        method=method,
        tables=(Table(title="Retrieval layers", columns=("layer", "best head's mass", "head", ""), rows=tuple(rows)),),
        results={"mass": found.mass.tolist(), "accuracy": found.accuracy, "proposed": list(proposed), "least": least},
        plots=(PLOT,),
    )
