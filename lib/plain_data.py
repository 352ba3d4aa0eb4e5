"""Text, YAML, JSON and tables as plain data, read strictly: what is wrong is an `InputError` that names the file.

Owns what a file may not hold whatever it means: bytes that are no UTF-8, a name given twice (parsers keep the last and
say nothing), YAML's aliases (a page of them can stand for more than memory holds) and tags, numbers that are none,
rows of another length than the header. What the data mean is for those who ask.
"""

import csv
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from lib.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_MOST = 2**63  # whole numbers of a YAML file lie below


def text(path: Path) -> str:
    """What stands in a file; `InputError` when it is no text, or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(f"{path.name} is not UTF-8 text (byte {problem.start}); save it as UTF-8") from None
    except OSError as problem:
        raise InputError(f"{path.name} cannot be read ({problem.strerror or problem}); is it a file?") from None


# YAML -----------------------------------------------------------------------------------------------------------------
class _Plain(yaml.SafeLoader):
    """PyYAML's safe loader, which makes no objects, without aliases, names given twice and numbers of any length."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(
                None, None, f"*{event.anchor}: aliases are not read; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep=deep)
        if len(found) < len(node.value):
            seen = set()
            for key, _ in node.value:
                name = self.construct_object(key, deep=True)
                if name in seen:
                    raise ConstructorError(None, None, f"{name!r} is given twice; keep one", key.start_mark)
                seen.add(name)
        return found

    def construct_yaml_int(self, node: Any) -> int:
        found = super().construct_yaml_int(node)
        if abs(found) >= _MOST:
            raise ConstructorError(None, None, "a number of more than 18 digits", node.start_mark)
        return found


_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.construct_yaml_int)


def yaml_of(content: str, name: str) -> Any:
    """The plain data of a YAML text; `name` says whose it is."""
    try:
        return yaml.load(content, _Plain)
    except yaml.YAMLError as problem:
        raise InputError(f"{name} is not valid YAML: {problem}") from None
    except RecursionError:
        raise InputError(f"{name} is not valid YAML: it is nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError) as problem:  # of PyYAML's constructors: 2020-99-99
        raise InputError(f"{name} is not valid YAML: a value cannot be read ({problem})") from None


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file."""
    return yaml_of(text(path), path.name)


# JSON -----------------------------------------------------------------------------------------------------------------
def json_of(content: str) -> Any:
    """The data of a JSON text; `ValueError` for what is none, a name given twice, and numbers that are not finite."""
    try:
        return json.loads(content, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def _finite(word: str) -> float:
    if not math.isfinite(number := float(word)):
        raise ValueError(f"{word[:20]} is no finite number")
    return number


# tables ---------------------------------------------------------------------------------------------------------------
def read_table(path: Path) -> "pd.DataFrame":
    """A CSV file with a header, lines that begin with # left out; every row has as many cells as the header.

    pandas alone would take the first cell of rows that are too long for an index, and fill those that are too short.
    """
    import pandas as pd

    lines = [line for line in text(path).split("\n") if not line.startswith("#")]
    content = "\n".join(lines)
    if "\0" in content:
        raise InputError(f"{path.name} is no table (it holds a zero byte); save it as text")
    try:
        header, *rows = (row for row in csv.reader(io.StringIO(content), strict=True) if row)
    except (csv.Error, ValueError) as problem:
        raise InputError(f"{path.name} is no table ({problem}); give a header and rows, separated by commas") from None
    if len(set(header)) < len(header) or not all(name.strip() for name in header):
        raise InputError(f"{path.name} has the columns {', '.join(header)}; give each a name of its own")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise InputError(
                f"row {number} of {path.name} has {len(row)} cells, its header {len(header)}; make them equal"
            )
    try:
        table = pd.read_csv(io.StringIO(content))
    except ValueError as problem:  # pandas' own errors are ValueErrors
        raise InputError(f"{path.name} is no table ({problem}); give a header and rows, separated by commas") from None
    for name in table.select_dtypes("float"):
        if not (finite := table[name].abs() != math.inf).all():
            raise InputError(f"row {finite.argmin() + 1} of {path.name} has no finite number in {name}; write one")
    return table
