"""Hugging Face's `rope_scaling` (transformers 5: `rope_parameters`) and our RopeConfig."""

import math
from typing import Any

from fot_jax.config import RopeConfig, RopeScaling, UserError

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def read_rope(values: dict[str, Any], *, max_positions: int, source: str) -> RopeConfig:
    """RopeConfig of a config.json.

    `rope_theta` and the scaling's kind may stand at the top (`rope_theta`, `rope_scaling` with `type` or
    `rope_type`) or together in `rope_parameters`. The original context is `original_max_position_embeddings`,
    else `max_position_embeddings`; DYNAMIC always takes the latter, as transformers does.

    Differs: under DYNAMIC transformers stretches theta by the longest sequence seen so far, so that keys turn
    differently as a text grows; ours stretches it by `model.local_context` once (`ops.rope.rope_frequencies`).
    The two agree up to the original context, and for a forward pass over exactly one local context.

    Args:
      values: config.json.
      max_positions: its max_position_embeddings, tokens.
      source: what errors begin with.

    Raises:
      UserError: an unknown kind, a missing or mistyped number, or a variant that is not computed here.
    """
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise UserError(f"{source}: rope_scaling must be an object, got {scaling!r}.")

    def number(name: str, default: float | None = None) -> float:
        value = scaling.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{source}: rope_scaling.{name} must be a number, got {value!r}.")
        return float(value)

    top = values.get("rope_theta")
    theta = number("rope_theta", 10000.0 if top is None else top)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in KINDS:
        raise UserError(f"{source}: rope_scaling.rope_type must be one of {', '.join(KINDS)}, got {kind!r}.")
    partial = scaling.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UserError(f"{source}: partial_rotary_factor must be 1 (all dimensions rotate), got {partial!r}.")
    if kind == "default":
        return RopeConfig(theta=theta)
    original = int(number("original_max_position_embeddings", max_positions))
    fields: dict[str, Any] = {"theta": theta, "scaling": RopeScaling(kind), "factor": number("factor")}
    fields["original_context"] = max_positions if kind == "dynamic" else original
    if kind == "llama3":
        fields["low_freq_factor"] = number("low_freq_factor")
        fields["high_freq_factor"] = number("high_freq_factor")
    if kind == "yarn":
        fields["beta_fast"], fields["beta_slow"] = number("beta_fast", 32.0), number("beta_slow", 1.0)
        _check_yarn(scaling, fields["factor"], source=source)
    rope = RopeConfig(**fields)
    rope.validate(f"{source}: rope_scaling")
    return rope


def _check_yarn(scaling: dict[str, Any], factor: float, *, source: str) -> None:
    """YARN here has one attention factor, 0.1 ln(factor) + 1, and rounded correction dimensions."""
    ours = 0.1 * math.log(factor) + 1 if factor > 0 else math.nan
    given = scaling.get("attention_factor")
    if given is None and scaling.get("mscale") and scaling.get("mscale_all_dim"):
        above, below = (0.1 * scaling[name] * math.log(factor) + 1 for name in ("mscale", "mscale_all_dim"))
        given = above / below
    if given is not None and not math.isclose(given, ours, rel_tol=1e-6):
        raise UserError(
            f"{source}: rope_scaling.attention_factor must be 0.1 ln(factor) + 1 = {ours:.6f}, got {given!r}."
            " Other factors (mscale included) are not supported."
        )
    if scaling.get("truncate", True) is not True:
        raise UserError(f"{source}: rope_scaling.truncate must be true, got {scaling['truncate']!r}.")


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """The keys `rope_theta` and `rope_scaling` of a config.json; see `read_rope`."""
    if rope.scaling is RopeScaling.NONE:
        return {"rope_theta": rope.theta, "rope_scaling": None}
    scaling: dict[str, Any] = {"rope_type": rope.scaling.value, "factor": rope.factor}
    if rope.scaling in (RopeScaling.LLAMA3, RopeScaling.YARN):
        scaling["original_max_position_embeddings"] = rope.original_context
    if rope.scaling is RopeScaling.LLAMA3:
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling is RopeScaling.YARN:
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
