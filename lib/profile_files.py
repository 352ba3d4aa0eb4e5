"""Where profile files are, and what stands in them once `like` is resolved.

Owns two folders (`data/profiles`, and `build/profiles` for those a command line made), and the one form of inheritance:
a profile that says `like: checkpoint` takes every setting of that one and states only what differs. Whether settings
are right is for `profiles` to say. It imports no validation library, because `provenance` asks before every task.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from lib import paths, plain_data
from lib.errors import InputError, unknown

LIKE = "like"


def folders(root: Path | None = None) -> tuple[Path, Path]:
    """Where profiles are looked for, in this order: a file of the repository or a user's own goes before a made one."""
    if root is None:
        return paths.PROFILES, paths.RUN_PROFILES
    return root / "data" / "profiles", root / "build" / "profiles"


def names(root: Path | None = None) -> list[str]:
    """The profiles that exist, in alphabetical order."""
    return sorted({path.stem for folder in folders(root) for path in folder.glob("*.yaml")})


def file(name: str, root: Path | None = None) -> Path:
    """The file of a profile; `InputError` with the names that exist for any other."""
    if name not in names(root):
        raise unknown("profile", name, names(root))
    return next(path for folder in folders(root) if (path := folder / f"{name}.yaml").is_file())


def settings(path: Path, root: Path | None = None) -> Any:
    """What a profile file says, with the settings of the profile it is `like`; unchecked, and not to be changed.

    Mappings are taken over field by field, everything else (lists, too) as a whole. A parent is a file of
    `data/profiles` that is like no other: one level, so that two files tell everything.
    """
    found = _parse(plain_data.text(path), path.name)
    if not isinstance(found, dict) or LIKE not in found:
        return found
    home, parent = folders(root)[0], found[LIKE]
    known = sorted(other.stem for other in home.glob("*.yaml"))
    if parent not in known:
        raise InputError(f"{path.name} is like {parent!r}, which is no profile; known: {', '.join(known)}")
    above = _parse(plain_data.text(home / f"{parent}.yaml"), f"{parent}.yaml")
    if not isinstance(above, dict) or LIKE in above:
        raise InputError(
            f"{path.name} is like {parent!r}, which is itself like another; name the profile that states all settings"
        )
    return _over(above, {key: value for key, value in found.items() if key != LIKE})


@lru_cache(maxsize=64)
def _parse(text: str, name: str) -> Any:
    """YAML as plain data, cached by text, so a changed file is seen."""
    return plain_data.yaml_of(text, name)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the settings of `above` in their place."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _over(result[key], value) if both else value
    return result
