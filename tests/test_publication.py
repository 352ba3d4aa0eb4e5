"""What readers get: committed pages are small, whole, in order and readable; the first page leads to what exists."""

import re

import nbformat
import pandas as pd
import pytest
from safetensors import safe_open

from lib import jobs, manifest, notebooks, paths, pipeline, profiles, publishing, readme, storage
from lib.errors import InputError
from tests import formulas

PAGES = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
LARGEST = 1.5e6  # bytes; GitHub stops showing a notebook some way above
STATIC = {"text/plain", "text/html", "text/markdown", "image/png"}
README = readme.PAGE.read_text(encoding="utf-8")


def outputs(page):
    for cell in page.cells:
        yield from cell.get("outputs", [])


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request):
    return nbformat.read(request.param, as_version=4)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_small(path):
    assert path.stat().st_size < LARGEST


def test_a_page_was_run_from_its_top_with_its_own_parameters(page):
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in code)  # kingdom, seed 0


def test_a_page_is_static(page):
    """No widgets, no scripts, nothing from the network: nbviewer and GitHub would leave them out or fail."""
    assert "widgets" not in page.metadata
    for output in outputs(page):
        data = output.get("data", {})
        assert set(data) <= STATIC
        assert not re.search(r"<script|<iframe|src=[\"']http|@import", data.get("text/html", ""))


def test_every_image_says_what_it_shows(page):
    for output in outputs(page):
        if "image/png" in output.get("data", {}):
            assert len(output.metadata["image/png"]["alt"]) > 30
        assert not re.search(r"<img(?![^>]*\balt=\"[^\"]+\")", output.get("data", {}).get("text/html", ""))
    prose = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    assert not re.search(r"!\[\s*\]", prose)


def test_formulas_can_be_set_and_no_dollar_is_left_over(page):
    texts = [cell.source for cell in page.cells if cell.cell_type == "markdown"]
    texts += [output.get("data", {}).get("text/markdown", "") for output in outputs(page)]
    assert [problem for text in texts for problem in formulas.problems(formulas.without_code(text))] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (r"a map $x \mapsto xW + b$ and $\tau$, $$\sum_i x_i^2$$", 0),
        ("it costs $5", 1),
        ("between $5 and $10", 2),
        (r"it costs \$5", 0),
        (r"$\frac{1}{2$", 1),
        ("`$HOME` and ``a $b`` cost nothing\n```\n$x\n```\n", 0),
    ],
)
def test_the_search_for_dollars_finds_them(text, count):
    assert len(formulas.problems(formulas.without_code(text))) == count


# The first page -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    text = formulas.without_code((paths.ROOT / name).read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    headings = {re.sub(r"[^\w -]", "", line[3:]).strip().lower().replace(" ", "-") for line in text.splitlines()}
    for target in targets:
        file, _, anchor = target.partition("#")
        if file.startswith("https://"):
            continue
        assert not file or (paths.ROOT / file).is_file(), target
        assert not anchor or anchor in headings, target


def test_the_first_page_is_short_and_its_figure_has_words():
    assert len(README.splitlines()) < 250
    (alt,) = re.findall(r"!\[([^\]]*)\]", README)
    assert len(alt) > 30


def test_the_first_figure_shows_what_its_caption_says():
    found = pd.read_csv(paths.FIGURES / "03_unit_classification.ssah.4.csv").set_index("name")
    printed = found[(found["panel"] == "published") & (found["group"] == "scu")]
    assert len(printed) == 3
    assert (printed["rise"] > 0.25).all()
    assert (printed["cost"] < 0.05).all()
    assert abs(found.loc["the paper's score: SCU", "rise"]) < 0.05
    assert found.loc["the strongest score: SCU", "rise"] > 0.5
    assert found.loc["the strongest score: SCU", "cost"] < 0.05
    assert found.loc["random, as many as SCU", "rise"].abs().max() < 0.05


def test_the_models_are_as_small_as_the_first_page_says():
    with safe_open(paths.shipped_organism(0) / "base" / "model.safetensors", "np") as file:
        count = sum(int(pd.Series(file.get_slice(name).get_shape()).prod()) for name in file.keys())  # noqa: SIM118
    assert f"{count / 1e6:.1f} million parameters" in README


def test_options_and_profiles_on_the_first_page_exist():
    known = {option for action in pipeline._parser()._actions for option in action.option_strings}
    commands = "\n".join(line for line in README.splitlines() if "run_all.sh" in line or line.startswith("| `--"))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", commands))
    assert named - {"--gres"} <= known
    table = README[README.index("| profile |") :].split("\n\n")[0]
    for name in re.findall(r"`([a-z0-9.-]+)`", "\n".join(row.split("|")[1] for row in table.splitlines())):
        assert profiles.load(name).name == name


# Publishing -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with an older state published, and a finished run of one page to publish; the page's name."""
    name = "08_dominant_direction"
    ledger = storage.read_json(paths.RESULTS / "kingdom" / "ledger.json")
    book = notebooks.read(name)
    source = notebooks.source_path(name).read_text(encoding="utf-8")
    places = {"BUILD": "build", "FIGURES": "figures", "NOTEBOOKS": "notebooks", "RESULTS": "results"}
    for attribute, folder in places.items():
        monkeypatch.setattr(paths, attribute, tmp_path / folder)
    monkeypatch.setattr(readme, "PAGE", tmp_path / "README.md")
    monkeypatch.setattr(manifest, "BENCHMARKS", tmp_path / "results/benchmarks.json")
    storage.write_json(manifest.BENCHMARKS, [manifest.time_row("kingdom", name, 1.0)])
    storage.write_json(paths.RESULTS / "kingdom/ledger.json", ledger)
    marks = (readme.BEGIN, readme.END, readme.BEGIN_PAGES, readme.END_PAGES)
    files = {f"notebooks/{name}.ipynb": "old", f"notebooks/{name}.py": source, f"figures/{name}.a.png": "old"}
    files |= {f"figures/{name}.gone.png": "old", "README.md": "\n".join(marks)}
    for path, text in files.items():
        storage.write_text(tmp_path / path, text)
    job = jobs.Job(book, "kingdom", 0)
    for path in (job.slot.executed, job.slot.result, job.slot.folder / "figures" / f"{name}.a.png"):
        storage.write_text(path, "new")
    storage.write_json(job.slot.folder / "manifest.json", {"notebooks": {name: {"seconds": 90.0, "status": "done"}}})
    storage.write_json(jobs.ledger_file("kingdom"), ledger | {"rows": ledger["rows"][:-1]})
    return job


def state(root):
    """Every published file and its bytes."""
    own = [path for path in root.rglob("*") if path.is_file() and "build" not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in own}


def test_nothing_is_published_that_the_first_page_cannot_take(repository, tmp_path):
    whole = readme.PAGE.read_text(encoding="utf-8")
    readme.PAGE.write_text(whole.replace(readme.END_PAGES, ""))
    before = state(tmp_path)
    with pytest.raises(InputError, match="put the marks back"):
        publishing.publish([repository])
    assert state(tmp_path) == before
    readme.PAGE.write_text(whole)
    publishing.publish([repository])
    after = state(tmp_path)
    name = repository.notebook.name
    assert after[f"notebooks/{name}.ipynb"] == after[f"results/kingdom/seed-0/{name}.json"] == b"new"
    assert f"figures/{name}.gone.png" not in after
    assert manifest.published_times("kingdom") == {name: 90.0}
    assert after["results/kingdom/ledger.json"] != before["results/kingdom/ledger.json"]
    assert f"](notebooks/{name}.ipynb)" in after["README.md"].decode()


def test_nothing_is_published_of_a_run_without_a_ledger(repository, tmp_path):
    jobs.ledger_file("kingdom").unlink()
    before = state(tmp_path)
    with pytest.raises(InputError, match=r"ledger\.json does not exist"):
        publishing.publish([repository])
    assert state(tmp_path) == before
