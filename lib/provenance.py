"""Which code made a result: one hash over everything that could change its numbers.

Owns the hash, the static import graph behind it, and the keys of runs kept in the cache. Counted are the notebook's
source, every `lib` module it reaches by imports (but not the language of the other kind of profile), the profile's
settings as they are resolved, the models it names and `requirements.lock`. Not counted: comments, docstrings,
formatting, markdown cells, and modules loaded by name at run time, which `lib` does not do. It imports no tensor
library, because the pipeline asks before every task.
"""

import ast
import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from lib import paths, profile_files, sources, storage
from lib.errors import InputError, unknown

# By kind of profile, the package of `lib` that its notebooks never import: the other kind's language (see `worlds`).
OTHER_WORLD = {"trained": "public", "checkpoint": "kingdom"}
FINGERPRINT = 256  # examples of a stream that enter the key of a run: a change of data or mixture shows in them
NUMERIC = ("torch", "transformers", "nnsight", "numpy", "scipy", "scikit-learn", "pandas")


@lru_cache(maxsize=512)
def ast_digest(source: str) -> str:
    """sha256 of what the source does: its syntax tree without positions, docstrings and other bare strings.

    The same on every Python from 3.11 (`ast.dump` is not). Raises `SyntaxError`. Cached by text, so a changed file is
    seen.
    """
    return storage.digest_json(_plain(ast.parse(source)))


def _plain(node: Any) -> Any:
    """A syntax tree as JSON; empty fields are left out, because Python versions differ in which they have."""
    if isinstance(node, ast.Constant):
        return ["Constant", repr(node.value)]
    if isinstance(node, ast.AST):
        fields = {name: _plain(value) for name, value in ast.iter_fields(node) if value is not None and value != []}
        return [type(node).__name__, fields]
    if isinstance(node, list):
        return [_plain(item) for item in node if not _bare_string(item)]
    return node


def _bare_string(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@lru_cache(maxsize=512)
def _imports(source: str) -> tuple[tuple[str, int, str], ...]:
    """(module, level, name) of every import anywhere in the source; name is "" for `import module`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", node.level, alias.name) for alias in node.names]
    return tuple(found)


def _read(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    try:
        ast_digest(source)
    except SyntaxError as problem:
        raise InputError(f"{path.name} line {problem.lineno} is not valid Python ({problem.msg}); mend it") from None
    return source


def _files(dotted: str, root: Path, whole: bool) -> set[Path] | None:
    """The files that importing module `dotted` runs, or None when there is no such module.

    `whole`: a package taken as an object (`from lib import kingdom`) counts with all its submodules.
    """
    parts = dotted.split(".")
    inits = {root.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts))}
    module, package = root.joinpath(*parts).with_suffix(".py"), root.joinpath(*parts)
    if module.is_file():
        found = {module}
    elif package.is_dir():
        found = set(package.rglob("*.py")) if whole else {package / "__init__.py"}
    else:
        return None
    return {path for path in found | inits if path.is_file()}


def _reached(path: Path, root: Path) -> set[Path]:
    """The `lib` files that one file imports directly."""
    reached: set[Path] = set()
    for module, level, name in _imports(_read(path)):
        if level:  # relative: `from .grammar import x` in lib/kingdom/__init__.py
            module = ".".join([*path.relative_to(root).parts[:-level], *filter(None, [module])])
        if module.split(".")[0] != paths.LIB.name:
            continue
        found = _files(module, root, whole=name in ("", "*"))
        if found is None:
            raise InputError(f"{path.name} imports {module}, which is no file under {root.name}; correct the import")
        reached |= found | ((_files(f"{module}.{name}", root, whole=True) or set()) if name not in ("", "*") else set())
    return reached


def modules_of(source: Path, root: Path = paths.ROOT, without: str | None = None) -> set[Path]:
    """Every `lib` file that the Python file `source` reaches by imports, at any depth; not `source` itself.

    Imports inside functions and behind conditions count. `root` is the folder that holds `lib`; `without` names a
    package of it that is left out with all that only it imports.
    """
    seen: set[Path] = set()
    waiting = {source}
    while waiting:
        path = waiting.pop()
        fresh = {found for found in _reached(path, root) - seen if without not in found.relative_to(root).parts[1:-1]}
        seen |= fresh
        waiting |= fresh
    return seen - {source}


def notebooks(root: Path = paths.ROOT) -> list[str]:
    """Names of the notebooks that exist, such as `07_residual_space`, in order."""
    return sorted(path.stem for path in _under(root, paths.NOTEBOOKS).glob("[0-9][0-9]_*.py"))


def full_name(name: str, root: Path = paths.ROOT) -> str | None:
    """`residual_space`, as the registry says, -> `07_residual_space`; None when there is no such notebook."""
    matches = [notebook for notebook in notebooks(root) if notebook[3:] == name]
    if len(matches) > 1:
        raise InputError(
            f"notebooks {' and '.join(matches)} share a name, so claims cannot tell them apart; rename one"
        )
    return matches[0] if matches else None


def _under(root: Path, path: Path) -> Path:
    return root / path.relative_to(paths.ROOT)


def code_hash(notebook: str, profile: str, root: Path = paths.ROOT) -> str:
    """sha256 of everything that could change the numbers of `notebook` (`07_residual_space`) under `profile`.

    `InputError` for a notebook or profile that does not exist.
    """
    source, lock = _under(root, paths.NOTEBOOKS) / f"{notebook}.py", _under(root, paths.LOCK)
    if not source.is_file():
        raise unknown("notebook", notebook, notebooks(root))
    parsed = settings(profile, root)
    if not lock.is_file():
        raise InputError(f"{lock.name} is missing, so results could not say what made them; restore it from git")
    kind = parsed.get("kind") if isinstance(parsed, dict) else None
    modules = sorted(modules_of(source, root, OTHER_WORLD.get(str(kind))))
    models = sources.identities(parsed)
    return storage.digest_json(
        {
            "notebook": ast_digest(_read(source)),
            "lib": {path.relative_to(root).as_posix(): ast_digest(_read(path)) for path in modules},
            "profile": parsed,
            **({"models": models} if models else {}),
            "lock": lock.read_text(encoding="utf-8"),
        }
    )


def settings(profile: str, root: Path = paths.ROOT) -> Any:
    """A profile's settings as they are hashed: unchecked, `like` resolved."""
    where = None if root == paths.ROOT else root
    return profile_files.settings(profile_files.file(profile, where), where)


def run_key(
    decides: Mapping[str, Any], read: Iterable[Any], asked: Mapping[str, Sequence[Any]], code: Sequence[str]
) -> str:
    """Name of a run that is kept in the cache, of everything its outcome depends on.

    `decides`: models, settings and seeds as JSON; `read`: the examples it learns from, of which the first are taken;
    `asked`: the prompts it is measured on, by cell; `code`: names of the modules of `lib` that train and measure.
    Texts enter as a hash and stand nowhere.
    """
    sources = [(paths.LIB / f"{name}.py").read_text(encoding="utf-8") for name in code]
    return storage.digest_json(
        {
            "decides": dict(decides),
            "read": [_fields(example) for example in islice(read, FINGERPRINT)],
            "asked": {name: [_fields(prompt) for prompt in cell] for name, cell in asked.items()},
            "code": [ast_digest(source) for source in sources],
        }
    )[:20]


def _fields(record: Any) -> dict[str, Any]:
    """A dataclass of plain values and sets as JSON."""
    found = dataclasses.asdict(record)
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in found.items()}


def versions() -> str:
    """What this ran on, in one line: the packages whose versions can change a number."""
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in NUMERIC]
    return ", ".join(found)
