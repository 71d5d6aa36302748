"""Turns Hugging Face's `rope_scaling` (transformers 5: `rope_parameters`) into our RopeConfig, and back."""

import logging
import math
from typing import Any

from fot_jax.config import RopeConfig, RopeScaling, UserError

logger = logging.getLogger(__name__)

COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
ORIGINAL = "original_max_position_embeddings"
KEYS: dict[str, tuple[str, ...]] = {  # kind: the keys that transformers reads for it, in addition to COMMON
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", ORIGINAL, "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
}
KINDS = tuple(KEYS)
OTHER_CODE = ("alpha", "long_factor", "short_factor", "mrope_section")  # keys of other models' positions


class _Scaling:
    """The object from which transformers 5 reads the positions' numbers, with typed access.

    It is `rope_scaling` unless that is empty, else `rope_parameters`; never parts of both.
    """

    def __init__(self, values: dict[str, Any], source: str):
        self.source = source
        for name in ("rope_scaling", "rope_parameters"):
            if values.get(name) is not None and not isinstance(values[name], dict):
                raise UserError(f"{source}: {name} must be an object, got {values[name]!r}.")
        newer = not values.get("rope_scaling") and values.get("rope_parameters")
        self.name = "rope_parameters" if newer else "rope_scaling"
        self.values: dict[str, Any] = values.get(self.name) or {}
        other = values.get("rope_parameters")
        if self.name == "rope_scaling" and self.values and other and other != self.values:
            logger.warning("%s: rope_scaling is read, as in transformers; rope_parameters is not", source)
        self.kind = self._kind()
        self._check_keys()

    def _kind(self) -> str:
        key = "rope_type" if "rope_type" in self.values or "type" not in self.values else "type"
        kind = self.values.get(key, "default")
        if not isinstance(kind, str) or kind not in KINDS:
            raise UserError(f"{self.source}: {self.name}.{key} must be one of {', '.join(KINDS)}, got {kind!r}.")
        return kind

    def _check_keys(self) -> None:
        """Refuses keys of unsupported positions; logs the keys that this kind does not read."""
        nested = next((key for key, value in self.values.items() if isinstance(value, dict)), None)
        if nested is not None:
            raise UserError(
                f"{self.source}: {self.name} must hold the numbers of all layers, got an object for {nested!r}. Other"
                " positions by layer are not supported."
            )
        other = next((key for key in OTHER_CODE if self.values.get(key) is not None), None)
        if other is not None:
            raise UserError(
                f"{self.source}: {self.name}.{other} must be absent, got {str(self.values[other])[:80]}. No LLaMA has"
                " such positions."
            )
        unread = sorted(key for key in self.values if key not in (*COMMON, *KEYS[self.kind]))
        if self.values.get("type", self.kind) != self.kind:
            unread.append("type")
        if unread:
            logger.warning(
                "%s: %s of the kind %r is read without %s, as in transformers",
                self.source, self.name, self.kind, ", ".join(unread),
            )  # fmt: skip

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a finite number; `default`, if given, where the key is absent (a null is no number)."""
        return finite(self.values.get(name, default), f"{self.source}: {self.name}.{name}")

    def optional(self, name: str, default: float) -> float:
        """Returns a finite number; `default` where the key is absent or null."""
        return default if self.values.get(name) is None else self.number(name)


def finite(value: Any, path: str) -> float:
    """Returns a JSON value as a float. Raises UserError where it is no finite number."""
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond floats
        pass
    raise UserError(
        f"{path} must be a finite number, got {str(value)[:80] if isinstance(value, int) else repr(value)}."
    )


def read_rope(values: dict[str, Any], *, max_positions: int, source: str) -> RopeConfig:
    """Reads the RopeConfig of a config.json as transformers 5.15 does.

        place                                 which one counts
        rope_scaling, rope_parameters         rope_scaling unless empty; the other one is not read
        rope_theta at the top and inside      inside, else at the top, else 10000
        original_max_position_embeddings      at the top, else inside, else max_position_embeddings (llama3, yarn);
                                              dynamic always takes max_position_embeddings

    Differs: under DYNAMIC transformers stretches theta by the longest sequence seen so far, so that keys turn
    differently as a text grows; ours stretches it by `model.local_context` once (`ops.rope.rope_frequencies`).
    The two agree up to the original context, and for a forward pass over exactly one local context.

    Args:
      values: config.json.
      max_positions: its max_position_embeddings, tokens.
      source: the file; errors begin with it.

    Raises:
      UserError: an unknown kind, a missing or mistyped number, or an unsupported variant.
    """
    scaling = _Scaling(values, source)
    for place, found in ((scaling.name, scaling.values), ("", values)):
        partial = found.get("partial_rotary_factor")
        if isinstance(partial, bool) or partial not in (None, 1):
            name = f"{place}.partial_rotary_factor".lstrip(".")
            raise UserError(f"{source}: {name} must be 1 (all dimensions rotate), got {partial!r}.")
    theta, kind = _theta(scaling, values), scaling.kind
    if ORIGINAL in values and ORIGINAL not in KEYS[kind]:
        logger.warning("%s: positions of the kind %r are read without %s, as in transformers", source, kind, ORIGINAL)
    if kind == "default":
        return RopeConfig(theta=theta)
    original = max_positions if kind == "dynamic" else _original(scaling, values, max_positions)
    fields: dict[str, Any] = {"theta": theta, "scaling": RopeScaling(kind), "original_context": original}
    if kind == "yarn" and "factor" in scaling.values and scaling.values["factor"] is None:
        fields["factor"] = max_positions / original  # as transformers takes a null
    else:
        fields["factor"] = scaling.number("factor")
    if kind == "llama3":
        fields["low_freq_factor"] = scaling.number("low_freq_factor")
        fields["high_freq_factor"] = scaling.number("high_freq_factor")
    if kind == "yarn":
        fields["beta_fast"] = scaling.optional("beta_fast", 32.0)
        fields["beta_slow"] = scaling.optional("beta_slow", 1.0)
        _check_yarn(scaling, fields["factor"])
    rope = RopeConfig(**fields)
    rope.validate(f"{source}: {scaling.name}")
    return rope


def _theta(scaling: _Scaling, values: dict[str, Any]) -> float:
    """Reads the base of the frequencies: inside, else at the top, else 10000. Raises UserError."""
    if "rope_theta" not in scaling.values:
        return finite(values.get("rope_theta", 10000.0), f"{scaling.source}: rope_theta")
    theta = scaling.number("rope_theta")
    if values.get("rope_theta", theta) != theta:
        logger.warning(
            "%s: rope_theta %s inside %s is read, as in transformers; %s at the top is not",
            scaling.source, theta, scaling.name, values["rope_theta"],
        )  # fmt: skip
    return theta


def _original(scaling: _Scaling, values: dict[str, Any], max_positions: int) -> int:
    """Reads the context before scaling, tokens: at the top, else inside, else all positions. Raises UserError."""
    if ORIGINAL in values:
        number, path = values[ORIGINAL], ORIGINAL
        inside = scaling.values.get(ORIGINAL, number)
        if inside != number:
            logger.warning(
                "%s: %s %s at the top is read, as in transformers; %s inside %s is not",
                scaling.source, ORIGINAL, number, inside, scaling.name,
            )  # fmt: skip
    else:
        number, path = scaling.values.get(ORIGINAL, max_positions), f"{scaling.name}.{ORIGINAL}"
    found = finite(number, f"{scaling.source}: {path}")
    if found != int(found):
        raise UserError(f"{scaling.source}: {path} must be a whole number, got {number!r}.")
    return int(found)


def _check_yarn(scaling: _Scaling, factor: float) -> None:
    """Raises UserError unless YARN has the attention factor 0.1 ln(factor) + 1 and rounded correction dimensions."""
    ours = 0.1 * math.log(factor) + 1 if factor >= 1 else 1.0
    given = None if scaling.values.get("attention_factor") is None else scaling.number("attention_factor")
    if given is None and scaling.values.get("mscale") and scaling.values.get("mscale_all_dim"):
        logarithm = math.log(max(factor, 1.0))
        above, below = (0.1 * scaling.number(name) * logarithm + 1 for name in ("mscale", "mscale_all_dim"))
        given = above / below if below else math.inf
    if given is not None and not math.isclose(given, ours, rel_tol=1e-6):
        raise UserError(
            f"{scaling.source}: {scaling.name}.attention_factor must be 0.1 ln(factor) + 1 = {ours:.6f}, got {given!r}."
            " Other factors (mscale included) are not supported."
        )
    if scaling.values.get("truncate", True) is not True:
        raise UserError(f"{scaling.source}: {scaling.name}.truncate must be true, got {scaling.values['truncate']!r}.")


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """Returns the keys `rope_theta` and `rope_scaling` of a config.json; see `read_rope`."""
    if rope.scaling is RopeScaling.NONE:
        return {"rope_theta": rope.theta, "rope_scaling": None}
    scaling: dict[str, Any] = {"rope_type": rope.scaling.value, "factor": rope.factor}
    if rope.scaling in (RopeScaling.LLAMA3, RopeScaling.YARN):
        scaling[ORIGINAL] = rope.original_context
    if rope.scaling is RopeScaling.LLAMA3:
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling is RopeScaling.YARN:
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}
