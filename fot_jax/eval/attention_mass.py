"""The distraction curve r_d: the share of attention that a document's own past gets among d contexts.

For a query of a document, softmax weights w_ij over token j of context i (i = 1: the chunk before
the query's own chunk, i = 2 … d: chunks of other documents):

    r_d = Σ_j w_1j / Σ_i Σ_j w_ij

Local keys take part in the model's softmax but drop out of this ratio. A layer that cannot tell
documents apart has r_d ≈ 1/d. Source: FoT sec. 3.3, fig. 3.
"""

import concurrent.futures
import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fot_jax.config import Boundaries, ModelConfig, UserError
from fot_jax.eval.reading import EvaluatedModel
from fot_jax.eval.targets import Documents, Target, choose_targets, gather_tokens
from fot_jax.models.inputs import TrainInputs
from fot_jax.models.transformer import run
from fot_jax.ops.crossbatch import context_log_masses
from fot_jax.types import Plan


def own_share(log_masses: Float[Array, "B C L H"], own: Bool[Array, "B C"]) -> Float[Array, "B L H"]:
    """Returns r_d of every query and head: the softmax of the log masses over contexts, summed over the own ones.

    Args:
      log_masses: log Σ_j exp(score_ij) of each context i.
      own: True at contexts of the query's own document.
    """
    shares = jax.nn.softmax(log_masses, axis=1)
    return jnp.sum(jnp.where(own[:, :, None, None], shares, 0.0), axis=1)


def distraction_plan(documents: np.ndarray, *, num_contexts: int) -> Plan:
    """Plans the contexts of each chunk: its own previous chunk, then those of the next rows of other documents.

    Rows 0 … R-1 of the batch hold the previous chunks, rows R … 2R-1 the chunks whose queries are
    measured. For documents 7 8 7 9 (R = 4) and d = 3 (own context first):

        row 4 (document 7) reads 0 1 3        row 6 (document 7) reads 2 3 1
        row 5 (document 8) reads 1 2 3        row 7 (document 9) reads 3 0 1

    Args:
      documents: int [R], the document of each pair of chunks.
      num_contexts: d.

    Raises:
      UserError: some row has fewer than d - 1 chunks of other documents.
    """
    R = len(documents)
    ids = np.full((2 * R, num_contexts), -1, np.int32)
    for row in range(R):
        others = [j % R for j in range(row + 1, row + R) if documents[j % R] != documents[row]]
        if len(others) < num_contexts - 1:
            raise UserError(
                f"evaluation.distraction_contexts asks for {num_contexts} contexts, but held-out documents give only"
                f" {len(others) + 1}. Lower it or raise data.heldout_fraction."
            )
        ids[R + row] = [row, *others[: num_contexts - 1]]
    own = np.zeros(ids.shape, bool)
    own[R:, 0] = True
    return Plan(context_ids=ids, own_document=own)


@functools.partial(jax.jit, static_argnames=("config", "scaling_from"))
def _shares(params, tokens, segments, plan: Plan, *, config: ModelConfig, scaling_from: int) -> Float[Array, "P R H"]:
    """Returns r_d per memory layer, row and head, averaged over the row's queries."""
    options = {"segments": segments, "boundaries": Boundaries.MASKED}
    inputs = TrainInputs(plan=plan, log_length_scaling_from=scaling_from, **options)
    output = run(config, params, tokens, inputs, capture=True)
    assert output.queries is not None and output.keys is not None
    R = tokens.shape[0] // 2

    def one_layer(captured):
        queries, keys = captured
        masses = context_log_masses(queries, keys, plan, **options)
        return own_share(masses[R:], plan.own_document[R:]).mean(axis=1)

    layers = np.asarray(config.memory_layers)
    return jax.lax.map(one_layer, (output.queries[layers], output.keys[layers]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distraction:
    """Measured r_d of one model.

    Attributes:
      contexts: the values of d.
      shares: float [X, P, R, H]: per d, memory layer, row (chunk of a held-out document) and head,
        each the mean over the row's queries.
      targets: the R measured chunks.
    """

    contexts: tuple[int, ...]
    shares: np.ndarray
    targets: tuple[Target, ...]

    @property
    def curve(self) -> list[float]:
        """Mean r_d per d: the plain mean over queries, rows, heads and memory layers."""
        return self.shares.mean(axis=(1, 2, 3)).tolist()

    @property
    def by_head(self) -> np.ndarray:
        """Mean r_d per head, float [X, P, H], over queries and rows."""
        return self.shares.mean(axis=2)


def choose_rows(documents: Documents, *, length: int, contexts: tuple[int, ...], rows: int, seed: int) -> list[Target]:
    """Chooses chunks that have a previous chunk, enough of them that each finds d - 1 of other documents.

    Takes one chunk of as many documents as there are, then one more per document until there are at least `rows`.
    """
    needed = max(max(contexts), rows)
    targets: list[Target] = []
    for per_document in range(1, needed + 1):
        targets = choose_targets(documents, length=length, history=1, most=needed, per_document=per_document, seed=seed)
        largest = max(np.unique([target.document for target in targets], return_counts=True)[1])
        if len(targets) >= rows and len(targets) - largest >= max(contexts) - 1:
            break
    return targets


def measure(
    evaluated: EvaluatedModel, *, documents: Documents, contexts: tuple[int, ...], rows: int, seed: int
) -> Distraction:
    """Measures r_d on held-out documents with the attention the model really uses at each d.

    One run of the model processes the previous chunks, which read no contexts, and the measured chunks,
    whose memory layers attend to local ∪ d contexts. So deeper memory layers see what the shallower
    ones made of the d contexts. A model trained without crossbatch is run in the same way;
    `memory.log_length_scaling_from` applies to both, as in reading. Means are plain: over the queries of a chunk, then
    chunks, heads and memory layers.

    Args:
      evaluated: the model.
      documents: held-out documents.
      contexts: the values of d.
      rows: measured chunks (more where the largest d needs more).
      seed: seeds the choice of documents.
    """
    length = evaluated.model.local_context
    targets = choose_rows(documents, length=length, contexts=contexts, rows=rows, seed=seed)
    previous, current = gather_tokens(documents, targets=targets, length=length, history=1)
    tokens = np.concatenate([previous, current[:, :length]])
    owners = np.asarray([target.document for target in targets])
    segments = np.broadcast_to(np.tile(owners + 1, 2)[:, None], tokens.shape).astype(np.int32)
    how = {"config": evaluated.model, "scaling_from": evaluated.memory.log_length_scaling_from}
    plans = [distraction_plan(owners, num_contexts=d) for d in contexts]

    def compiled(plan: Plan):
        return _shares.lower(evaluated.params, tokens, segments, plan, **how).compile()

    # Each d has a program of its own, and XLA compiles one on one core: most of this measurement's time.
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        programs = list(pool.map(compiled, plans))
    shares = [
        np.asarray(program(evaluated.params, tokens, segments, plan))
        for program, plan in zip(programs, plans, strict=True)
    ]
    return Distraction(contexts=contexts, shares=np.stack(shares), targets=tuple(targets))
