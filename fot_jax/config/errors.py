"""The errors a user can cause, and the check every section uses.

`launch.cli.run` prints their message as one line and exits with code 2.
"""


class UserError(ValueError):
    """Something the user can mend: one line that says what, got, allowed and the fix."""


class ConfigError(UserError):
    """A config that cannot run: the message says what, got, allowed and the fix."""


def check(condition: bool, path: str, rule: str, got: object, fix: str = "") -> None:
    """Raises ConfigError("path must rule, got X. fix") unless the condition holds."""
    if not condition:
        raise ConfigError(f"{path} must {rule}, got {got!r}." + (f" {fix}" if fix else ""))
