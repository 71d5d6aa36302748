"""Every kind of input, by name."""

from tests.fuzz import kinds_config, kinds_convert, kinds_data, kinds_runs, toy

KINDS = {
    kind.name: kind for group in (kinds_convert, kinds_data, kinds_runs, kinds_config, toy) for kind in group.KINDS
}
