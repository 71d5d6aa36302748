"""The table of chips against the pods' published sums, and the names of topologies."""

import pytest

from fot_jax.aot.chips import CHIPS, CPU, parse_topology
from fot_jax.config import UserError

# Published for whole pods: chips, bfloat16 FLOP/s, all-reduce bytes/s (Google's pages of v3, v4, v5e, v6e).
PODS = {
    "v3": (1024, 126e15, 340e12),
    "v4": (4096, 1.1e18, 1.1e15),
    "v5e": (256, 50.63e15, 51.2e12),
    "v6e": (256, 234.9e15, 102.4e12),
}


def test_chips_are_all_there():
    """Finds the five chips, each with the source of its numbers."""
    assert set(CHIPS) == {"v3", "v4", "v5e", "v5p", "v6e"}
    assert all(chip.source for chip in CHIPS.values())


@pytest.mark.parametrize("name", PODS)
def test_chips_add_up_to_their_pods(name):
    """Compares FLOP/s and links with the published sums of whole pods."""
    chips, flops, ring = PODS[name]
    assert CHIPS[name].flops * chips == pytest.approx(flops, rel=0.03)
    # every device sends and receives over all its links while a ring all-reduce runs
    assert CHIPS[name].ici_bytes_per_second * chips == pytest.approx(ring, rel=0.15)


def test_chip_v3_has_two_devices():
    """Halves its memory, FLOP/s and bandwidth; a v5p is one device."""
    device = CHIPS["v3"].device
    assert (device.hbm_bytes, device.flops, device.hbm_bytes_per_second) == (16 * 2**30, 61.5e12, 450e9)
    assert CHIPS["v5p"].device == CHIPS["v5p"]


@pytest.mark.parametrize(
    ("text", "devices"), [("v3:8x8", 128), ("v4:4x4x8", 128), ("v5e:16x16", 256), ("v5p:4x4x4", 64), ("cpu:8", 8)]
)
def test_parse_topology_counts_devices(text, devices):
    """Reads the chip and the sides of a pod, and a number of CPU devices."""
    pod = parse_topology(text)
    assert (pod.devices, pod.topology) == (devices, text)
    assert (pod.chip is CPU) == text.startswith("cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e", "must be CHIP:NxM"),
        ("v5e:16x", "must be CHIP:NxM"),
        ("v5e:0x4", "must be CHIP:NxM"),
        ("v9:4x4", "one of the chips v3, v4, v5e, v5p, v6e"),
        ("h100:8", "one of the chips"),
        ("v5e:4x4x4", "a v5e must have 2 sides"),
        ("v5p:8x8", "a v5p must have 3 sides"),
    ],
)
def test_parse_topology_refuses_by_name(text, message):
    """Says what is wrong with the text."""
    with pytest.raises(UserError, match=message):
        parse_topology(text)
