"""Rules every real notebook keeps: see `style.md`'s frame of a notebook, as far as a program can check it."""

import ast

import jupytext
import nbformat
import pytest

from lib import notebooks, paths, provenance
from lib.notebooks import READS_RESULTS

NAMES = provenance.notebooks()
LONGEST = 20  # lines of a code cell


def code(name: str) -> list[str]:
    text = notebooks.source_path(name).read_text(encoding="utf-8")
    return [cell.source for cell in notebooks.cells(text) if cell.kind == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_kernel(name):
    book = notebooks.read(name)
    declared = {parameter.name: parameter for parameter in book.parameters}
    assert declared["profile"].default == "kingdom"
    assert declared["seed"].default == 0
    assert all(parameter.about for parameter in book.parameters), "every parameter says what it is"
    assert book.reads_results == (name[:2] in ("00", "15")), f"tag the parameters cell of 00 and 15 {READS_RESULTS}"
    kernel = jupytext.read(notebooks.source_path(name)).metadata.kernelspec
    assert (kernel.name, kernel.language) == ("python3", "python")


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_define_nothing(name):
    for source in code(name):
        assert len(source.splitlines()) <= LONGEST, source
        assert ".trace(" not in source, "only lib opens a trace"
        kinds = {type(node) for node in ast.walk(ast.parse(source))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef}, source


@pytest.mark.parametrize("name", NAMES)
def test_source_is_read_as_jupytext_reads_it(name):
    ours = notebooks.cells(notebooks.source_path(name).read_text(encoding="utf-8"))
    theirs = jupytext.read(notebooks.source_path(name)).cells
    assert [(c.kind, list(c.tags)) for c in ours] == [(c.cell_type, c.metadata.get("tags", [])) for c in theirs]
    assert [c.source for c in ours] == [c.source for c in theirs]


@pytest.mark.parametrize("path", sorted(paths.NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_published_notebook_is_in_step_with_its_source(path):
    book = nbformat.read(path, as_version=4)
    back = jupytext.writes(jupytext.read(path), fmt="py:percent")
    source = notebooks.source_path(path.stem).read_text(encoding="utf-8")
    assert back.partition("# %%")[2] == source.partition("# %%")[2], "run ./run_all.sh --publish"
    assert "papermill" not in book.metadata
    assert not any({"papermill", "execution"} & cell.metadata.keys() for cell in book.cells)
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code" and cell.source.strip())
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)


def test_addresses_are_taken_out_of_outputs():
    shown = "<pandas.io.formats.style.Styler at 0x7f1c2b3a9d50> and <Axes object at 0xab> stay, 0x7f too"
    assert notebooks._anonymous(shown) == "<pandas.io.formats.style.Styler> and <Axes object> stay, 0x7f too"
