"""The one exception for things a user can mend.

Owns nothing else. Every message names the value, what is allowed and the remedy, in one or two sentences; the command
line prints it without a traceback and exits with 2.
"""

from collections.abc import Iterable


class InputError(ValueError):
    """Something asked for or supplied cannot be used; the message says what, what is allowed and what to do."""


def unknown(kind: str, value: object, allowed: Iterable[object]) -> InputError:
    """The error for a name that is not on a list: `unknown("profile", "kingdon", ["kingdom", "tiny"])`."""
    return InputError(f"unknown {kind} {value!r}; known: {', '.join(str(name) for name in allowed)}")
