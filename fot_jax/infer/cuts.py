"""Where a long input is cut into windows: functions of its length and the options of windows (see windows.py)."""

from fot_jax.config import LastContext, MemoryConfig, ModelConfig


def window_lengths_at_least(length: int, *, window: int, last: int, overlap: int = 0) -> list[int]:
    """Returns the number of new tokens of each window: full ones, a rest, and a last one of at least `last` tokens.

    With window 8, last 4:   8 -> [8]   13 -> [8, 5]   9 -> [5, 4]   18 -> [8, 6, 4]
    and overlap 3:           8 -> [8]   13 -> [8, 5]   9 -> [5, 4]   18 -> [8, 5, 1, 4]

    An input that fits one window is not cut. The last window has the tokens that full windows without overlap
    would leave, or `last` if that is more; the windows before it are the fewest that hold the rest.

    Args:
      length: tokens of the input, >= 1.
      window: tokens of the local context W.
      last: least length of the last window, 1..W.
      overlap: tokens that each window except the first and the last reads again, < W.
    """
    if length <= window:
        return [length]
    final = max(1 + (length - 1) % window, last)
    first, step = min(length - final, window), window - overlap
    full, rest = divmod(length - final - first, step)
    return [first, *[step] * full, *[rest] * (rest > 0), final]


def window_lengths_exact(length: int, *, window: int, last: int, overlap: int = 0) -> list[int]:
    """Returns the number of new tokens of each window: full ones, a rest, and a last one of exactly `last` tokens.

    With window 8, last 4:   3 -> [3]   8 -> [4, 4]   13 -> [8, 1, 4]
                   last 0:   3 -> [3]   8 -> [8]      13 -> [8, 5]      the last one goes to memory too
    and overlap 3, last 4:   8 -> [4, 4]   18 -> [8, 5, 1, 4]

    Args: as in `window_lengths_at_least`, except `last`: 0..W.

    Source: `_handle_long_input` in LongLLaMA's modeling_longllama.py.
    """
    past = length - min(length, last)
    first, step = min(past, window), window - overlap
    full, rest = divmod(past - first, step)
    cuts = [first, *[step] * full, rest, length - past]
    return [cut for cut in cuts if cut]


def window_lengths(length: int, config: ModelConfig, memory: MemoryConfig) -> list[int]:
    """Returns the cuts that `memory.last_context` asks for."""
    how = {"window": config.local_context, "last": last_context(config, memory), "overlap": memory.overlap}
    return {LastContext.AT_LEAST: window_lengths_at_least, LastContext.EXACT: window_lengths_exact}[
        memory.last_context
    ](length, **how)


def reads_memory(length: int, config: ModelConfig, memory: MemoryConfig) -> bool:
    """True if a memory is read before the local context overflows.

    So it is where an input of this length is cut, and where all of it goes to memory before the first new token.
    """
    cut = len(window_lengths(length, config, memory)) > 1 or last_context(config, memory) == 0
    return bool(config.memory_layers) and cut


def last_context(config: ModelConfig, memory: MemoryConfig) -> int:
    """Returns `memory.last_context_length`; 0 means half of the local context under AT_LEAST, nothing under EXACT."""
    half = max(1, config.local_context // 2) if memory.last_context is LastContext.AT_LEAST else 0
    return memory.last_context_length or half
