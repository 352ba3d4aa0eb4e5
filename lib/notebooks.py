"""Notebook sources: their names, titles and parameters; and how an executed notebook is made reproducible.

Owns reading `notebooks/NN_name.py` (jupytext's percent format) without jupytext, whose import takes longer than a run
in which nothing is to do, and the cleaning of executed notebooks. It runs nothing.
"""

import ast
import html
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib import paths, provenance
from lib.errors import InputError, unknown

Value = str | int | float | bool
KINDS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
READS_RESULTS = "reads-results"  # tag of the parameters cell of a notebook that shows the ledger, so runs after it
NO_MODELS = "no-models"  # tag of the parameters cell of a notebook that needs no models made first, so waits for none
ON_REQUEST = "on-request"  # tag of the parameters cell of a notebook that takes hours, so runs only when it is named
_MARKER = re.compile(r"^# %%(?P<rest>.*)$")
_LIMITS = re.compile(r"\bfrom (-?[\d.]*\d) to (-?[\d.]*\d)\b")  # of a number, in the words about it
_TAGS = re.compile(r"tags=(\[[^\]]*\])")


@dataclass(frozen=True)
class Cell:
    """One cell of a source: `kind` is "code", "markdown" or "raw"; markdown without its `# `."""

    kind: str
    tags: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Parameter:
    """One line `name: kind = default  # about` of the parameters cell; `about` may say "from 2 to 100"."""

    name: str
    kind: str
    default: Value
    about: str

    def typed(self, text: str) -> Value:
        """The value that `text` from the command line stands for; `InputError` when it is not of this kind."""
        try:
            if self.kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            value = KINDS[self.kind](text)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError
        except (ValueError, KeyError):
            allowed = {"bool": "true or false", "int": "a whole number", "float": "a finite number"}[self.kind]
            raise InputError(f"parameter {self.name} is {allowed} ({self.about}), not {text!r}") from None
        limits = _LIMITS.search(self.about)
        if limits and not float(limits[1]) <= float(value) <= float(limits[2]):
            raise InputError(f"parameter {self.name} is {text}; give a number {limits[0]} ({self.about})")
        return value


@dataclass(frozen=True)
class Notebook:
    """A source as the pipeline sees it. `reads_results`: it shows the ledger, so it runs last and needs no models.
    `uses_models`: it may load one, so it runs once they are made. `on_request`: it runs only when it is named."""

    name: str
    title: str
    parameters: tuple[Parameter, ...]
    reads_results: bool
    uses_models: bool
    on_request: bool = False

    def parameter(self, name: str) -> Parameter | None:
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


def source_path(name: str) -> Path:
    return paths.NOTEBOOKS / f"{name}.py"


def cells(text: str) -> list[Cell]:
    """The cells of a percent-format source, without its header."""
    blocks: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if marker := _MARKER.match(line):
            blocks.append((marker["rest"], []))
        elif blocks:
            blocks[-1][1].append(line)
    return [_cell(rest, lines) for rest, lines in blocks]


def _cell(rest: str, lines: list[str]) -> Cell:
    tags = _TAGS.search(rest)
    kind = next((kind for kind in ("markdown", "raw") if f"[{kind}]" in rest), "code")
    if kind != "code":
        lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
    return Cell(kind, tuple(json.loads(tags[1])) if tags else (), "\n".join(lines).strip("\n"))


def parameters(name: str, source: str) -> tuple[Parameter, ...]:
    """What a parameters cell declares; `InputError` with the line that is not `name: type = value  # what it is`."""
    try:
        body = ast.parse(source).body
    except SyntaxError as problem:
        raise InputError(f"{name}: line {problem.lineno} of the parameters cell is not Python: {problem.msg}") from None
    found = tuple(_parameter(name, node, source.splitlines()) for node in body)
    missing = {"profile": "str", "seed": "int"}.items() - {(p.name, p.kind) for p in found}
    if missing:
        wanted = " and ".join(f"{key}: {kind}" for key, kind in sorted(missing))
        raise InputError(f"{name}: its parameters cell must declare {wanted}")
    return found


def _parameter(name: str, node: ast.stmt, lines: list[str]) -> Parameter:
    line = lines[node.lineno - 1]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        kind, comment = ast.unparse(node.annotation), line.encode()[node.end_col_offset :].decode()
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            value = None
        if kind == "float" and type(value) is int:
            value = float(value)
        if isinstance(value, Value) and type(value) is KINDS.get(kind):
            return Parameter(node.target.id, kind, value, comment.strip().lstrip("#").strip())
    raise InputError(
        f"{name}: the line {line!r} of the parameters cell must read `name: type = value  # what it is`, "
        f"with a plain value and one of the types {', '.join(KINDS)}"
    )


def read(name: str) -> Notebook:
    """The notebook of that full name; `InputError` when its source breaks the rules the pipeline relies on."""
    parts = cells(source_path(name).read_text(encoding="utf-8"))
    declared = next((cell for cell in parts if "parameters" in cell.tags), None)
    if declared is None:
        raise InputError(f'{name}: it has no parameters cell (`# %% tags=["parameters"]` with profile and seed)')
    headings = (line for cell in parts if cell.kind == "markdown" for line in cell.source.splitlines())
    title = next((line[2:].strip() for line in headings if line.startswith("# ")), name)
    shows = READS_RESULTS in declared.tags
    uses = not shows and NO_MODELS not in declared.tags
    return Notebook(name, title, parameters(name, declared.source), shows, uses, ON_REQUEST in declared.tags)


def find(text: str) -> str:
    """The full name that `3`, `03`, `unit_classification` or `03_unit_classification` stands for."""
    names = provenance.notebooks()
    for name in names:
        number, _, rest = name.partition("_")
        if text in (name, rest) or (text.isdecimal() and int(text) == int(number)):
            return name
    raise unknown("notebook", text, names)


# Executed notebooks ---------------------------------------------------------------------------------------------------
def number_cells(notebook: Any) -> None:
    """Ids by position, so that the same source gives the same bytes; the cell papermill adds has a name of its own."""
    position = 0
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "parameters-of-this-run"
        else:
            cell["id"] = f"cell-{position:02d}"
            position += 1


def clean(notebook: Any) -> None:
    """Take out of an executed notebook whatever differs between runs or tells about the machine, in place."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["jupytext"] = {"formats": "ipynb,py:percent"}  # JupyterLab keeps the two files in step
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell["outputs"] = _joined([_anonymous(output) for output in cell.outputs])
    number_cells(notebook)


def _joined(outputs: list[Any]) -> list[Any]:
    """Successive pieces of one stream as one: where they are cut depends on timing."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1]["text"] += output.text
        else:
            joined.append(output)
    return joined


def _anonymous(value: Any) -> Any:
    """`value` with this machine's folders, addresses and the kernel's process number taken out of every text."""
    if isinstance(value, dict):
        for key in value:
            if key not in ("image/png", "image/jpeg"):
                value[key] = _anonymous(value[key])
        return value
    if isinstance(value, list):
        return [_anonymous(item) for item in value]
    if not isinstance(value, str):
        return value
    # A path is looked for from where a word begins only: else a long word, such as an image in HTML, takes for ever.
    value = re.sub(r"(?<![^\s\"'(<])[^\s\"'(<]*ipykernel_\d+/\d+\.py", "<cell>", value)
    value = re.sub(r"(<[\w.]+(?: object)?) at 0x[0-9a-f]+>", r"\1>", value)  # an address: another one in every run
    for folder, name in ((sys.prefix, "<environment>"), (str(paths.ROOT), "."), (str(Path.home()), "~")):
        if len(folder) > 1:
            value = re.sub(re.escape(folder) + r"(?=[/\s:\"')]|$)", name, value)
    return value


def carry_outputs(new: Any, old: Any) -> bool:
    """Copy the outputs of `old` into `new`, the same with other prose; False when a cell does something else."""
    injected = [cell for cell in old.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    before = [cell for cell in old.cells if cell.cell_type == "code" and cell not in injected]
    after = [cell for cell in new.cells if cell.cell_type == "code"]
    try:
        if [provenance.ast_digest(c.source) for c in before] != [provenance.ast_digest(c.source) for c in after]:
            return False
    except SyntaxError:  # a cell with a magic
        return False
    for source, target in zip(before, after, strict=True):
        target["outputs"], target["execution_count"] = source.outputs, source.execution_count
    if injected:
        place = next(i for i, cell in enumerate(new.cells) if "parameters" in cell.metadata.get("tags", []))
        new.cells.insert(place + 1, injected[0])
    if "language_info" in old.metadata:
        new.metadata["language_info"] = old.metadata.language_info
    return True


# Pages ----------------------------------------------------------------------------------------------------------------
_SCRIPTS = re.compile(r"<script\b(?=[^>]*\b(?:src=\"http|type=\"module\"))[^>]*>.*?</script>", re.DOTALL)


def to_html(path: Path) -> str:
    """An executed notebook as one page that loads nothing: scripts from the network are left out, formulas stay TeX."""
    from nbconvert import HTMLExporter

    try:
        page, _ = HTMLExporter(template_name="classic").from_filename(str(path))
    except (OSError, ValueError):  # the template is not installed
        page, _ = HTMLExporter(template_name="lab").from_filename(str(path))
    return _SCRIPTS.sub("", page)


def html_index(heading: str, titles: dict[str, str]) -> str:
    """A page that links to `<name>.html` for every name in `titles`."""
    heading = html.escape(heading)
    items = [f'<li><a href="{name}.html">{name}</a>: {html.escape(text)}</li>' for name, text in titles.items()]
    head = f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title></head>'
    return "\n".join([head, f"<body><h1>{heading}</h1>", "<ul>", *items, "</ul></body></html>", ""])
