"""Published figures of the chips that a program can be compiled for, and the names of their pods."""

import dataclasses
import math
import re

from fot_jax.config import UserError

GIGA, TERA, GIBI = 1e9, 1e12, 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip. A JAX device is a whole chip, except on v3, where it is one of the chip's two cores.

    Attributes:
      name: the chip's name in a topology.
      devices: JAX devices of a chip.
      libtpu_options: options of the topology's description. A v4 is one device of two cores only if asked for.
      flops: peak bfloat16 FLOP/s.
      hbm_bytes: size of its high-bandwidth memory.
      hbm_bytes_per_second: bandwidth of that memory.
      ici_bytes_per_second: bandwidth at which the chip receives over all its links together.
      source: publication of the figures.
    """

    name: str
    devices: int = 1
    libtpu_options: tuple[tuple[str, str], ...] = ()
    flops: float
    hbm_bytes: int
    hbm_bytes_per_second: float
    ici_bytes_per_second: float
    source: str

    @property
    def device(self) -> "Chip":
        """The share of one JAX device in the chip."""
        return dataclasses.replace(
            self,
            devices=1,
            flops=self.flops / self.devices,
            hbm_bytes=self.hbm_bytes // self.devices,
            hbm_bytes_per_second=self.hbm_bytes_per_second / self.devices,
            ici_bytes_per_second=self.ici_bytes_per_second / self.devices,
        )


# ICI, one way: links x bytes/s. v3 4 x 656 Gbit/s, v4 6 x 50 GB/s, v5e 4 x 50 GB/s, v5p 6 x 100 GB/s, v6e 4 x 100 GB/s.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v3", devices=2, flops=123 * TERA, hbm_bytes=32 * GIBI, hbm_bytes_per_second=900 * GIGA,
            ici_bytes_per_second=4 * 82 * GIGA,
            source="cloud.google.com/tpu/docs/v3; links: Jouppi et al., CACM 63(7), 2020",
        ),
        Chip(
            name="v4", flops=275 * TERA, hbm_bytes=32 * GIBI, hbm_bytes_per_second=1200 * GIGA,
            ici_bytes_per_second=6 * 50 * GIGA, libtpu_options=(("chip_config_name", "megacore"),),
            source="cloud.google.com/tpu/docs/v4; links: Jouppi et al., ISCA 2023 (arXiv 2304.01433)",
        ),
        Chip(
            name="v5e", flops=197 * TERA, hbm_bytes=16 * GIBI, hbm_bytes_per_second=819 * GIGA,
            ici_bytes_per_second=4 * 50 * GIGA,
            source="cloud.google.com/tpu/docs/v5e (400 GB/s both ways)",
        ),
        Chip(
            name="v5p", flops=459 * TERA, hbm_bytes=95 * GIBI, hbm_bytes_per_second=2765 * GIGA,
            ici_bytes_per_second=6 * 100 * GIGA,
            source="cloud.google.com/tpu/docs/v5p (1200 GB/s both ways)",
        ),
        Chip(
            name="v6e", flops=918 * TERA, hbm_bytes=32 * GIBI, hbm_bytes_per_second=1640 * GIGA,
            ici_bytes_per_second=4 * 100 * GIGA,
            source="cloud.google.com/tpu/docs/v6e (800 GB/s both ways)",
        ),
    )
}  # fmt: skip
# Figures for "cpu:8", so that a report can be made without libtpu: roughly one core.
CPU = Chip(
    name="cpu", flops=50 * GIGA, hbm_bytes=16 * GIBI, hbm_bytes_per_second=10 * GIGA,
    ici_bytes_per_second=10 * GIGA, source="a stand-in, not a chip",
)  # fmt: skip
EXAMPLES = "v3:8x8, v4:4x4x8, v5e:16x16, v5p:4x4x4, v6e:16x16, or cpu:8 for a dry run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pod:
    """A named arrangement of chips.

    Attributes:
      topology: the pod's name, "v5e:16x16".
      chip: kind of its chips.
      chips: number of chips.
    """

    topology: str
    chip: Chip
    chips: int

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.chips * self.chip.devices


def parse_topology(text: str) -> Pod:
    """Returns the pod that a topology's name means: "v5e:16x16", "v5p:4x4x4", "cpu:8".

    Raises:
      UserError: the chip is unknown, or the name is not CHIP:NxM or CHIP:NxMxK.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    sides = [int(side) for side in match[2].split("x")] if match else []
    if not match or min(sides) < 1:
        raise UserError(f"--topology must be CHIP:NxM or CHIP:NxMxK, got {text!r}. Examples: {EXAMPLES}.")
    if match[1] == CPU.name:
        return Pod(topology=text, chip=CPU, chips=math.prod(sides))
    if match[1] not in CHIPS:
        raise UserError(
            f"--topology must name one of the chips {', '.join(CHIPS)}, got {text!r}. Examples: {EXAMPLES}."
        )
    axes = 3 if match[1] in ("v4", "v5p") else 2
    if len(sides) != axes:
        raise UserError(f"--topology of a {match[1]} must have {axes} sides, got {text!r}. Examples: {EXAMPLES}.")
    return Pod(topology=text, chip=CHIPS[match[1]], chips=math.prod(sides))
