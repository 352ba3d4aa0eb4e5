"""The exception for things a user can mend, and the one for things a profile cannot give.

Owns nothing else. Every message names the value, what is allowed and the remedy, in one or two sentences; the command
line prints it without a traceback and exits with 2.
"""

from collections.abc import Iterable


class InputError(ValueError):
    """Something asked for or supplied cannot be used; the message says what, what is allowed and what to do."""


class NotHere(Exception):
    """What a page needs is not to be had with this profile: no attack prompts, say, or no training on a server.

    A notebook that meets it stops there, and its claims are recorded as not testable for this reason; nothing failed.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback."""
        return [f"This page stops here: {self}"]


def unknown(kind: str, value: object, allowed: Iterable[object]) -> InputError:
    """The error for a name that is not on a list: `unknown("profile", "kingdon", ["kingdom", "tiny"])`."""
    return InputError(f"unknown {kind} {value!r}; known: {', '.join(str(name) for name in allowed)}")
