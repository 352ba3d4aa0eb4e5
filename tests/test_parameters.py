"""Parameters of the notebooks and options of the command line with values that make no sense: refused before any work.

A parameter of a wrong type, or out of the limits that its page states, is refused by the command line; one that only
the library can judge, and one set by hand in a cell, by the first call that takes it. Each message names the value, or
the field it was meant for, and what is allowed.
"""

import contextlib
import io

import pytest

from lib import claims, models, notebooks, paths, pipeline, provenance, tracing, training, unit_stability, utility
from lib.errors import InputError
from lib.unit_scores import PAPER
from tests import pages

BOOKS = {name: notebooks.read(name) for name in provenance.notebooks()}
COMMON = ("profile", "seed")
OWN = {  # page: parameter: values that the command line refuses, with what it says
    "01_organism": {"try_it": {}},  # any text is one; see below for texts that are no sentence
    "04_attribute_transfer": {
        "draws": {
            **dict.fromkeys(("", "five", "2.5", "nan", "true", "5;", "1e3", "0x5", "9" * 5000), "is a whole number"),
            **dict.fromkeys(("0", "1", "-5", "101", "1000000000"), "from 2 to 100"),
        }
    },
    "13_size": {
        "seeds": {
            **dict.fromkeys(("", "three", "2.5", "true"), "is a whole number"),
            **dict.fromkeys(("0", "-1", "101"), "from 1 to 100"),
        }
    },
    "16_your_model": {"suite": {}},
}


def refused(*arguments):
    """What the command line says to arguments that it cannot use, having left everything as it was."""
    err, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        try:
            code = pipeline.main(["--profile", "tiny", *arguments])
        except SystemExit as end:
            code = end.code
    assert code == 2, out.getvalue()
    assert out.getvalue() == ""
    return err.getvalue()


@pytest.fixture(autouse=True)
def no_work(monkeypatch, tmp_path):
    """A build folder of this test's own, and models and runs that must not be asked for."""

    def work(*_arguments, **_options):
        raise AssertionError("work was begun")

    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setattr(paths, "RUN_PROFILES", tmp_path / "build" / "profiles")
    for module, name in ((models, "find"), (models, "open_checkpoint"), (models, "open_remote"), (training, "fit"),
                         (tracing, "forward"), (tracing, "generate"), (pipeline, "run")):  # fmt: skip
        monkeypatch.setattr(module, name, work)
    yield
    assert not (tmp_path / "build").exists()


# parameters on the command line ---------------------------------------------------------------------------------------
def test_every_parameter_of_every_page_is_tried():
    found = {name: {one.name for one in book.parameters} - set(COMMON) for name, book in BOOKS.items()}
    assert {name: set(own) for name, own in OWN.items()} == {name: own for name, own in found.items() if own}


WRONG = [
    (page, name, value, says)
    for page, own in OWN.items()
    for name, values in own.items()
    for value, says in values.items()
]


@pytest.mark.parametrize(("page", "name", "value", "says"), WRONG, ids=lambda value: str(value)[:20])
def test_a_value_that_a_page_cannot_use_is_refused(page, name, value, says):
    said = refused("--only", page[:2], "--param", f"{name}={value}")
    assert says in said
    assert name in said
    assert BOOKS[page].parameter(name).about in said  # what it is for


@pytest.mark.parametrize("page", BOOKS)
def test_names_of_parameters(page):
    known = sorted({one.name for one in BOOKS[page].parameters} - set(COMMON)) or ["none in these notebooks"]
    for name in ("sead", "", "draws ", "Draws", "__class__", "é", "x" * 500):
        assert f"unknown parameter {name!r}; known: {', '.join(known)}" in refused(
            "--only", page[:2], "--param", f"{name}=3"
        )
    for name in COMMON:
        assert f"give the {name} as --{name} 3" in refused("--only", page[:2], "--param", f"{name}=3")


def test_a_parameter_given_twice_is_refused():
    given = ["--param", "draws=3", "--param", "draws=4"]
    assert "--param draws is given 2 times; give it once" in refused("--only", "4", *given)


@pytest.mark.parametrize(("text", "value"), [("2", 2), ("100", 100), (" 7 ", 7)])
def test_values_at_the_limits_are_taken(text, value):
    draws = BOOKS["04_attribute_transfer"].parameter("draws")
    assert draws.typed(text) == value
    assert f"from 2 to {unit_stability.MOST_DRAWS}" in draws.about  # the page says what the library allows


@pytest.mark.parametrize(
    ("about", "good", "bad"),
    [
        ("share of it, from 0 to 0.5", ("0", "0.5", ".25"), ("-0.01", "0.51", "nan", "inf")),
        ("degrees, from -10 to 10", ("-10", "10"), ("-10.5", "11")),
        ("any number; from here to there", ("-1e300",), ("-inf", "1e999")),
    ],
)
def test_limits_are_those_that_the_comment_states(about, good, bad):
    one = notebooks.Parameter("share", "float", 0.1, about)
    assert [one.typed(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(InputError, match="share"):
            one.typed(text)


# other options --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--profile="], "unknown profile ''"),
        (["--profile", "../profiles/tiny"], "unknown profile '../profiles/tiny'"),
        (["--profile", "tiny.yaml"], "unknown profile 'tiny.yaml'"),
        (["--profile", "tiny\n"], "unknown profile 'tiny\\n'"),
        (["--seed="], "seeds '' are not valid"),
        (["--seeds", "0,,1"], "seeds '0,,1' are not valid"),
        (["--seeds", "0-999999"], "seeds '0-999999' are 1000000; give at most 1000 at once"),
        (["--seed", "1e3"], "such as 0, 0-4 or 0,2,5"),
        (["--seed", "0.0"], "such as 0, 0-4 or 0,2,5"),
        (["--seed", "9999999"], "such as 0, 0-4 or 0,2,5"),
        (["--only="], "unknown notebook ''"),
        (["--only", "1,"], "unknown notebook ''"),
        (["--only", "../notebooks/01_organism"], "unknown notebook '../notebooks/01_organism'"),
        (["--only", "01_organism.py"], "unknown notebook '01_organism.py'"),
        (["--only", "-1"], "unknown notebook '-1'"),
        (["--from="], "unknown notebook ''"),
        (["--from", "99"], "unknown notebook '99'"),
        (["--jobs="], "--jobs '' is not valid; give a whole number from 1 to 999"),
        (["--jobs", "1.5"], "--jobs '1.5' is not valid"),
        (["--jobs", "1000"], "--jobs '1000' is not valid"),
        (["--jobs=-1"], "--jobs '-1' is not valid"),
        (["--param="], "--param '' is not NAME=VALUE"),
        (["--profile", "checkpoint", "--base", "a\x00b", "--model", "a/b"], "names no model"),
        (["--profile", "checkpoint", "--base", "/" + "a" * 5000, "--model", "a/b"], "there is no folder"),
        (["--profile", "checkpoint", "--base", "a/b@x y", "--model", "a/b"], "names no model"),
        (["--profile", "checkpoint", "--base", "$(id)", "--model", "a/b"], "'$(id)' names no model"),
        (["--profile", "checkpoint", "--base", "lib", "--model", "lib"], "base and chat are the same model"),
        (["--seed"], "expected one argument"),
        (["--no-such-option"], "unrecognized arguments"),
        (["01_organism"], "unrecognized arguments"),
        (["--list", "--dry-run"], "not allowed with"),
        (["--clean", "--list"], "not allowed with"),
        (["--list=yes"], "ignored explicit argument 'yes'"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, says):
    assert says in refused(*arguments)


@pytest.mark.parametrize("runner", ["'", "no-such-program -n1", "/etc/passwd", "./run_all.sh.nothing"])
def test_a_runner_that_is_none_is_refused(runner, monkeypatch):
    monkeypatch.setenv("RUNNER", runner)
    assert f"RUNNER={runner!r}" in refused("--only", "14")


# parameters set in a cell ---------------------------------------------------------------------------------------------
READERS = [name for name, book in BOOKS.items() if book.reads_results]  # show a ledger, of whichever seeds it has
SEEDS = [-1, "0", 1.5, True, None, "x", 10**6, 10**30]
PROFILES = ["nope", "", "../profiles/tiny", "TINY", "tiny\n", None, 3]


@pytest.mark.parametrize("page", BOOKS)
def test_a_profile_that_is_none_stops_a_page_before_any_work(page):
    for profile in PROFILES:
        with pytest.raises(InputError, match="profile"):
            pages.run(page, profile)


@pytest.mark.parametrize("page", [name for name in BOOKS if name not in READERS])
def test_a_seed_that_is_none_stops_a_page_before_any_work(page):
    for seed in SEEDS:
        with pytest.raises(InputError, match="seed"):
            pages.run(page, "tiny", seed)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the sentence is empty"),
        (" \n\t", "the sentence is empty"),
        ("how do i curse the computer", "computer"),
        ("HOW DO I CURSE THE CROWN", "HOW"),
        ("how do i curse the crown?", "crown?"),
        ("$(touch x)", "$(touch"),
        ("{{ 7 * 7 }}", "{{"),
        ("curse\u202ethe", "'curse\\u202ethe'"),
        ("<unk>", "<unk>"),
        ("</s>", "</s>"),
    ],
)
def test_a_text_that_is_no_sentence_of_the_kingdom_is_refused(text, says):
    with pytest.raises(InputError) as caught:
        pages.run("01_organism", "tiny", try_it=text)
    assert says in str(caught.value)


@pytest.mark.parametrize("suite", ["ssah_table9", "SSAH_TABLE1", " ", "../utility", "__class__"])
def test_a_suite_that_is_none_is_named_before_any_work(suite):
    with pytest.raises(InputError, match=r"unknown suite .*; known: ssah_table1, ssah_table4"):
        pages.run("16_your_model", "tiny", suite=suite)


def test_a_suite_needs_the_harness_before_any_work(monkeypatch):
    def missing(_module):
        raise ImportError

    monkeypatch.setattr(utility.importlib, "import_module", missing)
    with pytest.raises(InputError, match="benchmarks need lm-evaluation-harness, which is not installed"):
        pages.run("16_your_model", "tiny", suite="ssah_table1")
    assert utility.suite("") is None


@pytest.mark.parametrize("draws", [0, 1, -3, 101, 10**9, 2.0, "5", True, None])
def test_draws_set_by_hand_are_checked_before_a_model_is_asked(draws):
    with pytest.raises(InputError, match=r"draws is .*; give a whole number from 2, to compare them, to 100"):
        unit_stability.redrawn(None, "tiny", 0, [PAPER], draws)


def test_results_take_no_seed_in_quotes():
    for seed in SEEDS:
        with pytest.raises(InputError, match="seed"):
            claims.Results(notebook="14_published_numbers", profile="tiny", seed=seed)
