"""Notebooks run cell by cell in this process, as the pipeline does with a kernel, so that a test can run many."""

import ast
import contextlib
import io
from typing import Any

from lib import notebooks
from lib.errors import NotHere


def run(notebook: str, profile: str, seed: int = 0, **parameters: Any) -> tuple[str, str | None]:
    """Run a notebook's code cells in order, as the pipeline does: all that it shows, as text, and why it stopped.

    The reason is that of `NotHere`, None where the page came to its end; whatever else a cell raises is raised.
    """
    text = notebooks.source_path(notebook).read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            for cell in notebooks.cells(text):
                if cell.kind == "code":
                    _execute(cell.source, names)
                if "parameters" in cell.tags:
                    names |= {"profile": profile, "seed": seed, **parameters}
    except NotHere as reason:
        return shown.getvalue(), str(reason)
    return shown.getvalue(), None


def _execute(source: str, names: dict[str, Any]) -> None:
    """One cell; the value of a last expression is printed, as text and as HTML where it has some."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        for view in (repr(value), getattr(value, "data", ""), getattr(value, "_repr_html_", str)()):
            print(view)
