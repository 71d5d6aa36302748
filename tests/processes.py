"""How a process of the tests runs JAX: on CPU devices, with programs that are compiled quickly."""

import os

WITHOUT_TORCH = "tests/e2e/without_torch"  # for PYTHONPATH: users have no torch


def xla_flags(*, devices: int) -> str:
    """Returns XLA's flags for this many CPU devices."""
    return " ".join(
        [
            f"--xla_force_host_platform_device_count={devices}",
            # Programs of tests are tiny: making them costs more than running them. The older emitters of CPU code, in
            # one piece, take a third of the time.
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
            # Eight devices on few busy cores may wait long for each other; XLA's 40 s would abort the process.
            "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
            "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        ]
    )


def environment(*, devices: int = 1, cache: os.PathLike | str | None = None) -> dict[str, str]:
    """Returns the variables of a process that a test starts: no torch, and few optimisations.

    Args:
      devices: how many CPU devices it has.
      cache: where processes keep compiled programs for each other; None: nowhere.
    """
    kept = (
        {}
        if cache is None
        else {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
    )
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices=devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": WITHOUT_TORCH,
        **kept,
    }
