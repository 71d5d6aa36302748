"""The tasks of `launch.evaluate`: each measures, tabulates and plots, and returns a Report."""

from collections.abc import Callable

from fot_jax.eval.report import Report
from fot_jax.eval.tasks.context import context_task
from fot_jax.eval.tasks.dictionary import dictionary_task
from fot_jax.eval.tasks.distraction import distraction_task
from fot_jax.eval.tasks.needle import needle_task
from fot_jax.eval.tasks.passkey import passkey_task
from fot_jax.eval.tasks.perplexity import perplexity_task

TASKS: dict[str, Callable[..., Report]] = {
    "perplexity": perplexity_task,
    "context": context_task,
    "distraction": distraction_task,
    "dictionary": dictionary_task,
    "passkey": passkey_task,
    "needle": needle_task,
}
