"""Readers given what they should not get: each returns what the file says, or refuses it in words that name the file.

Never another exception, never a field that is passed over, never a value read as another one. Inputs are drawn by
hypothesis from valid documents (the same ones in every run; many more among the slow tests) and, for traps of YAML and
JSON that chance would not find, written out.
"""

import json
import math
import struct
import time

import pytest
import yaml

from lib import (
    claims,
    finetune,
    ledger,
    notebooks,
    paths,
    pipeline,
    plain_data,
    profile_files,
    profiles,
    sources,
    storage,
)
from lib.errors import InputError
from lib.figures import published
from lib.public import data, schemas
from tests import leaks, mutations, public_files
from tests.mutations import BYTES, JUNK, st

MANY = [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
many = pytest.mark.parametrize("examples", MANY)
two = {"base": {"name": "org/one"}, "chat": {"name": "org/two", "revision": "main"}}
PROFILES = {
    "tiny": yaml.safe_load((paths.PROFILES / "tiny.yaml").read_text()),
    "checkpoint": yaml.safe_load((paths.PROFILES / "checkpoint.yaml").read_text()) | {"models": two},
}
REGISTRY = [row for row in yaml.safe_load(paths.CLAIMS.read_text()) if row["id"] in ("ssah.4", "hd.1", "hd.3", "hd.13")]
RESULT = json.loads(next(paths.RESULTS.glob("kingdom/seed-0/06_*.json")).read_text())


def outcome(read, *names):
    """What `read` returns, or None where it refuses, in words with each of `names`."""
    try:
        return read()
    except InputError as problem:
        said = str(problem)
    assert all(name in said for name in names), (names, said)
    return None


# profiles -------------------------------------------------------------------------------------------------------------
def profile(document):
    return outcome(lambda: profiles.check(document, "mine.yaml"), "mine.yaml")


def settled(found):
    """A profile as a document again."""
    assert profiles.parse(found.model_dump_json()) == found
    return found.model_dump(exclude_unset=True)


OPTIONAL = {
    "length_power",
    "content_weight",
    "utility",
    "refusal",
    "openers",
    "refusals",
    "revision",
    "ledgers",
    "errands",
}


@many
@pytest.mark.parametrize("name", PROFILES)
class TestProfiles:
    def test_what_is_accepted_is_what_was_written(self, name, examples):
        def check(one):
            place, document = one
            found = profile(document)
            assert found is None or mutations.same(settled(found), document), place

        mutations.over(mutations.replacements(PROFILES[name]), examples, check)

    def test_a_field_that_is_missed_is_refused(self, name, examples):
        def check(one):
            place, document = one
            if profile(document) is not None:  # an item of a list, or a field with a default
                assert isinstance(place[-1], int) or place[-1] in OPTIONAL or "coverage" in place, place

        mutations.over(mutations.drops(PROFILES[name]), examples, check)

    def test_a_field_that_nothing_knows_is_refused(self, name, examples):
        def check(one):
            place, document = one
            assert profile(document) is None, place

        mutations.over(mutations.additions(PROFILES[name], lambda at: at[-1:] == ("coverage",)), examples, check)

    def test_a_damaged_file_is_read_as_it_stands_or_refused(self, name, examples, tmp_path):
        file = tmp_path / "mine.yaml"

        def check(content):
            file.write_bytes(content)
            found = outcome(lambda: profiles.read(file), "mine.yaml")
            if found is not None:
                assert mutations.same(settled(found), yaml.safe_load(content))

        text = yaml.safe_dump(PROFILES[name], sort_keys=False, allow_unicode=True).encode()
        mutations.over(st.one_of(mutations.damaged(text), BYTES), examples, check)


def test_what_a_parent_says_is_checked_with_what_its_child_says(tmp_path, monkeypatch):
    """A field that a child adds to what it is like is refused, and so is one written twice in either file."""
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    above = (paths.DATA / "profiles" / "checkpoint.yaml").read_text()
    for child, parent, named in (
        ("device: cpu\ndevice: cuda\n", above, "mine.yaml is not valid YAML: 'device' is given twice"),
        ("device: cpu\n", above + "device: cuda\n", "checkpoint.yaml is not valid YAML: 'device' is given twice"),
        ("organism: {sft: {stepz: 3}}\n", above, "organism.sft.stepz"),
        ("like: checkpoint\n", above, "'like' is given twice"),
    ):
        (tmp_path / "checkpoint.yaml").write_text(parent)
        (tmp_path / "mine.yaml").write_text("name: mine\nlike: checkpoint\n" + child)
        with pytest.raises(InputError) as caught:
            profiles.read(tmp_path / "mine.yaml")
        assert named in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("organism", "sft", "learning_rate"), math.inf, "organism.sft.learning_rate: Input should be a finite number"),
        (("organism", "dpo", "beta"), math.nan, "organism.dpo.beta"),
        (("organism", "sft", "warmup"), 7, "warmup 7 is longer than steps 6"),
        (("threads",), 10**9, "threads: Input should be less than or equal to 1024"),
        (("organism", "base"), {}, "organism: Value error, base lacks facts, styles, polish"),
        (("seeds",), [], "seeds"),
        (("seeds",), [0, 1, 0], "seeds [0, 1, 0] name one twice"),
        (("shots",), [0, 20, 20], "shots [0, 20, 20] name one twice"),
        (("preference_shots",), [20, 20], "preference_shots [20, 20] name one twice"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(place, value, named):
    with pytest.raises(InputError) as caught:
        profiles.check(mutations.replaced(PROFILES["tiny"], place, value), "mine.yaml")
    assert named in str(caught.value)


def test_a_name_longer_than_a_file_s_is_no_folder(tmp_path):
    assert sources.parse("a" * 5000, tmp_path) == ("a" * 5000, None)  # a name on the hub, where it will not be found
    with pytest.raises(InputError, match="there is no folder"):
        sources.parse("/" + "a" * 5000, tmp_path)
    long = mutations.replaced(PROFILES["checkpoint"], ("models", "base", "name"), "a" * 5000)
    assert profiles.check(long, "mine.yaml").models.base.name == "a" * 5000
    assert sources.find("a" * 5000, None) is None


# YAML -----------------------------------------------------------------------------------------------------------------
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(9 * ['*' + old])}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
TRAPS = {
    "a name twice": "name: a\nname: b",
    "a name twice, deeper": "a: [{b: 1, c: 2, b: 1}]",
    "a name twice by value": "a: {1: x, 1.0: y}",
    "an alias": "a: &x {b: 1}\nc: *x",
    "aliases of aliases": BOMB,
    "an alias of itself": "a: &a [*a]",
    "a merge": "a: &x {b: 1}\nc: {<<: *x}",
    "an object": "!!python/object/apply:os.system ['touch MARKER']",
    "an object of the full loader": "a: !!python/object/new:os.system ['touch MARKER']",
    "a module": "a: !!python/module:os",
    "a name of Python": "a: !!python/name:os.system",
    "a tuple": "a: !!python/tuple [1]",
    "a tag of its own": "a: !mine 3",
    "a date that is none": "a: 2020-99-99",
    "a number that is none": "a: !!int abc",
    "a float that is none": "a: !!float x",
    "a truth that is none": "a: !!bool x",
    "a time that is none": "a: !!timestamp x",
    "a hexadecimal that is none": "a: 0x_",
    "a long number": "a: " + "9" * 5000,
    "a number of 20 digits": "a: 10000000000000000000",
    "deep lists": "[" * 20_000,
    "deep mappings": "{a: " * 5_000,
    "two documents": "a: 1\n---\nb: 2",
    "no text": "\x00",
    "a key that is a list": "? [a]\n: b",
    "YAML of another version": "%YAML 9.9\n---\na: 1",
    "an unclosed quote": 'a: "b',
    "a tab": "a:\n\t- b",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_of_yaml_are_refused_at_once(trap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (profiles.read, claims.registry_from, schemas.read):
        (tmp_path / "mine.yaml").write_text(TRAPS[trap])
        started = time.monotonic()
        with pytest.raises(InputError, match=r"mine\.yaml is not valid YAML: "):
            read(tmp_path / "mine.yaml")
        assert time.monotonic() - started < 5
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]  # nothing was run


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"name: \xe9", b"\xed\xa0\x80"])
def test_bytes_that_are_no_text_are_refused(content, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(content)
    for read in (profiles.read, claims.registry_from, schemas.read):
        with pytest.raises(InputError, match=r"mine\.yaml is not UTF-8 text"):
            read(tmp_path / "mine.yaml")


def test_what_is_no_file_is_refused(tmp_path):
    for read in (profiles.read, claims.registry_from, schemas.read, storage.read_json, plain_data.read_table):
        for place in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(InputError, match=place.name):
                read(place)


@many
def test_yaml_is_read_as_pyyaml_does_or_refused(examples):
    def check(content):
        found = outcome(lambda: [plain_data.yaml_of(content, "mine.yaml")], "mine.yaml")
        assert found is None or repr(found[0]) == repr(yaml.safe_load(content))  # repr, because NaN is not NaN

    signs = ["a: ", "- ", "\n", "  ", *"{}[],:?!|>#%~'1é\t", '"', "0x", "&a ", "*a", "!!int ", "<<", "---", "..."]
    words = st.sampled_from([*signs, ": ", "? ", "1e9", ".inf", "2020-13-01"])
    mutations.over(st.one_of(st.lists(words, max_size=12).map("".join), st.text(max_size=40)), 5 * examples, check)


@many
def test_plain_data_survive_yaml(examples):
    def check(value):
        text = yaml.safe_dump(value, allow_unicode=True)
        found = outcome(lambda: [plain_data.yaml_of(text, "mine.yaml")], "mine.yaml")
        if found is None:  # whole numbers beyond 64 bits, and what was written as an alias
            assert "*id" in text or max(map(len, filter(str.isdigit, text.replace("-", " ").split())), default=0) > 18
        else:
            assert repr(found[0]) == repr(yaml.safe_load(text))

    mutations.over(JUNK.filter(lambda value: "\\ud" not in json.dumps(value)), examples, check)


# JSON -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 1}', '{"b": [{"a": 1, "a": 2}]}', '{"a": NaN}', "[Infinity]", "[-Infinity]", "1e999", "9" * 5000,
     "[" * 100_000, '{"a": ' * 50_000, "", "{", "\ufeff{}", "[1,]", "'a'"],
)  # fmt: skip
def test_traps_of_json_are_refused(text, tmp_path):
    (tmp_path / "mine.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.json is not valid JSON .*; delete it and run again"):
        storage.read_json(tmp_path / "mine.json")


@many
def test_json_is_read_as_python_does_or_refused(examples, tmp_path):
    file = tmp_path / "mine.json"

    def check(content):
        file.write_bytes(content)
        found = outcome(lambda: [storage.read_json(file)], "mine.json")
        assert found is None or found[0] == json.loads(content)

    start = json.dumps({"a": [1, 2.5, None, True, "é"], "b": {"c": {}, "d": "x" * 9}}).encode()
    mutations.over(st.one_of(mutations.damaged(start), BYTES), 5 * examples, check)


@many
def test_what_is_written_is_read(examples, tmp_path):
    def check(value):
        try:
            storage.write_json(tmp_path / "mine.json", value)
        except ValueError:  # not finite, or half of a character
            return
        assert storage.read_json(tmp_path / "mine.json") == value

    mutations.over(JUNK, examples, check)


# claims ---------------------------------------------------------------------------------------------------------------
def registry(rows, folder):
    """The claims of a registry as a document, or None where it is refused."""
    (folder / "mine.yaml").write_text(yaml.safe_dump(rows, allow_unicode=True))
    found = outcome(lambda: claims.registry_from(folder / "mine.yaml"), "mine.yaml")
    if found is None:
        return None
    assert list(found) == [owner.id for owner in found.values()]
    return [owner.model_dump(exclude_unset=True) for owner in found.values()]


def ruled(rows):
    """A registry with its rules parsed, each by itself."""
    return [
        row | {"parts": [part | {"rule": vars(claims.Rule.parse(part["rule"]))} for part in row["parts"]]}
        for row in rows
    ]


@many
class TestRegistry:
    def test_what_is_accepted_is_what_was_written(self, examples, tmp_path):
        def check(one):
            place, rows = one
            found = registry(rows, tmp_path)
            assert found is None or mutations.same(found, ruled(rows)), place

        mutations.over(mutations.replacements(REGISTRY), examples, check)

    def test_a_field_that_is_missed_is_refused(self, examples, tmp_path):
        def check(one):
            place, rows = one
            if registry(rows, tmp_path) is not None:
                kept = {"control", "note", "was", "requires", None}  # None is how YAML reads the key null of a rule
                assert isinstance(place[-1], int) or place[-1] in kept, place

        mutations.over(mutations.drops(REGISTRY), examples, check)

    def test_a_field_that_nothing_knows_is_refused(self, examples, tmp_path):
        def check(one):
            place, rows = one
            assert registry(rows, tmp_path) is None, place

        mutations.over(mutations.additions(REGISTRY, lambda at: at[-1:] == ("was",)), examples, check)


@pytest.mark.parametrize(
    "rule", [{"at_least": 10**400}, {"at_least": math.inf}, {"at_most": "1"}, {"at_most": True}, {}, [], 3]
)
def test_a_rule_that_is_none_is_refused(rule, tmp_path):
    part = {"id": "hd.1.a", "core": True, "measure": "m", "rule": rule}
    assert registry([{"id": "hd.1", "claim": "c", "where": "w", "notebook": "n", "parts": [part]}], tmp_path) is None


# results --------------------------------------------------------------------------------------------------------------
def result(document, folder):
    """A result file as the ledger reads it, as a document, or None where it is refused."""
    (folder / "seed-0").mkdir(exist_ok=True)
    (folder / "seed-0" / "mine.json").write_text(json.dumps(document))
    name = document.get("notebook") if isinstance(document, dict) else None
    read = lambda: ledger._result([folder], "kingdom", 0, "mine")  # noqa: E731
    found = outcome(read, "mine.json")
    assert found is None or name == "mine"
    return None if found is None else found.model_dump(mode="json", exclude_unset=True)


MINE = RESULT | {"notebook": "mine"}


def anything(place):
    """Whether a place may hold whatever a notebook found worth noting."""
    return "facts" in place or "detail" in place


@many
class TestResults:
    def test_what_is_accepted_is_what_was_written(self, examples, tmp_path):
        def check(one):
            place, document = one
            found = result(document, tmp_path)
            assert found is None or mutations.same(found, document), place

        mutations.over(mutations.replacements(MINE), examples, check)

    def test_a_field_that_is_missed_is_refused(self, examples, tmp_path):
        def check(one):
            place, document = one
            if result(document, tmp_path) is not None:
                whole = len(place) == 2 and place[0] in ("parts", "requires")  # of a notebook of an older registry
                control = isinstance(place[-1], int) and "controls" in place
                assert anything(place) or whole or control or place[-1] == "reason", place

        mutations.over(mutations.drops(MINE), examples, check)

    def test_a_field_that_nothing_knows_is_refused(self, examples, tmp_path):
        def check(one):
            place, document = one
            assert result(document, tmp_path) is None, place

        named = {("parts",), ("requires",)}
        mutations.over(mutations.additions(MINE, lambda at: anything(at) or at in named), examples, check)

    def test_a_damaged_file_is_read_as_it_stands_or_refused(self, examples, tmp_path):
        (tmp_path / "seed-0").mkdir()
        file = tmp_path / "seed-0" / "mine.json"

        def check(content):
            file.write_bytes(content)
            found = outcome(lambda: ledger._result([tmp_path], "kingdom", 0, "mine"), "mine.json")
            assert found is None or mutations.same(
                found.model_dump(mode="json", exclude_unset=True), json.loads(content)
            )

        mutations.over(st.one_of(mutations.damaged(json.dumps(MINE, indent=1).encode()), BYTES), examples, check)


PART = {"value": 0.5, "n": 3, "interval": [0.4, 0.6], "controls": [], "detail": None, "reason": None}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"interval": [0.6, 0.4]}, "the lower bound 0.6 lies above the upper bound 0.4"),
        ({"value": None}, "value None with reason None"),
        ({"reason": "it is not known"}, "value 0.5 with reason 'it is not known'"),
        ({"value": "0.5"}, "parts.ssah.10.x.value"),
        ({"value": True}, "parts.ssah.10.x.value"),
        ({"n": "3"}, "parts.ssah.10.x.n"),
        ({"n": -1}, "parts.ssah.10.x.n"),
        ({"interval": [0.4]}, "parts.ssah.10.x.interval"),
        ({"verdict": "holds"}, "parts.ssah.10.x.verdict"),
    ],
)
def test_parts_that_contradict_themselves_are_refused(change, named, tmp_path):
    (tmp_path / "seed-0").mkdir()
    found = MINE | {"parts": {"ssah.10.x": PART | change}}
    (tmp_path / "seed-0" / "mine.json").write_text(json.dumps(found))
    with pytest.raises(InputError) as caught:
        ledger._result([tmp_path], "kingdom", 0, "mine")
    assert named in str(caught.value)
    assert "mine.json" in str(caught.value)


# published tables -----------------------------------------------------------------------------------------------------
HEAD, GOOD = "claim,source,version,reliability,value", "hd.1,HD Table 4,v3,printed,0.5"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path)
    return tmp_path / "mine.csv"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no table"),
        ("# a comment only\n", "no table"),
        (f"{HEAD}\n{GOOD},9\n", "row 1 of mine.csv has 6 cells, its header 5"),  # pandas would shift every cell by one
        (f"{HEAD}\n{GOOD}\n{GOOD},9\n", "row 2 of mine.csv has 6 cells"),
        (f"{HEAD}\n{GOOD}\nhd.1,HD\n", "row 2 of mine.csv has 2 cells"),
        (f"{HEAD},value\n{GOOD},0.6\n", "give each a name of its own"),
        (f"{HEAD},\n{GOOD},0.6\n", "give each a name of its own"),
        (f'{HEAD}\nhd.1,"HD,v3,printed,1\n', "no table"),
        (f"{HEAD}\nhd.1,HD\x00,v3,printed,1\n", "a zero byte"),
        (f"{HEAD}\nhd.1,,v3,printed,1\n", "row 1 of mine.csv has nothing in source"),
        (f"{HEAD}\n{GOOD}\nhd.1,HD,v3,printed,nan\n", "row 2 of mine.csv has nothing in value"),
        (f"{HEAD}\n{GOOD}\nhd.1,HD,v3,printed,inf\n", "row 2 of mine.csv has no finite number in value"),
        (f"{HEAD}\nhd.1,HD,v3,printed,1e999\n", "row 1 of mine.csv has no finite number in value"),
        ("claim,source,value\nhd.1,HD,1\n", "lacks the columns reliability, version"),
    ],
)
def test_a_published_table_that_is_none_is_refused(text, named, shelf):
    shelf.write_text(text)
    with pytest.raises(InputError) as caught:
        published("mine")
    assert named in str(caught.value)
    assert "mine.csv" in str(caught.value)


def test_every_published_number_belongs_to_a_claim():
    known = {*claims.registry(), *(part.id for owner in claims.registry().values() for part in owner.parts)}
    assert {claim for path in paths.PUBLISHED.glob("*.csv") for claim in published(path.stem)["claim"]} <= known


@many
@pytest.mark.parametrize("name", ["hd_table4", "ssah_table1"])
def test_a_damaged_published_table_keeps_its_shape_or_is_refused(name, examples, shelf):
    content = (paths.DATA / "published" / f"{name}.csv").read_bytes()

    def check(spoilt):
        shelf.write_bytes(spoilt)
        table = outcome(lambda: published("mine"), "mine.csv")
        if table is not None:
            whole = spoilt.decode().replace("\r\n", "\n").replace("\r", "\n")
            header, *rows = [line for line in whole.split("\n") if line.strip() and not line.startswith("#")]
            assert len(table) <= len(rows)  # a cell may hold a line's end
            assert '"' in header or list(table.columns) == header.lstrip("\ufeff").split(",")
            assert not table.isna().to_numpy().any()
            numbers = table.select_dtypes("number")
            assert (numbers.abs() < math.inf).to_numpy().all()

    mutations.over(st.one_of(mutations.damaged(content), BYTES), examples, check)


# data sets ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", ["/etc/x.csv", "../x.csv", "a/../../x.csv"])
def test_a_data_set_lies_in_its_folder(file, tmp_path):
    about = yaml.safe_load((schemas.FOLDER / "advbench.yaml").read_text())
    about["local"][0]["files"] = [file]
    (tmp_path / "advbench.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(
        InputError, match=r"advbench\.yaml is not a data set's description: .*not in the folder of the set"
    ):
        schemas.read(tmp_path / "advbench.yaml")


@many
def test_descriptions_of_data_sets_are_read_as_written_or_refused(examples, tmp_path):
    file = tmp_path / "hd_goals.yaml"

    def check(one):
        place, document = one
        file.write_text(yaml.safe_dump(document, allow_unicode=True))
        found = outcome(lambda: schemas.read(file), "hd_goals.yaml")
        assert found is None or mutations.same(found.model_dump(exclude_unset=True), document), place

    document = yaml.safe_load((schemas.FOLDER / "hd_goals.yaml").read_text())
    mutations.over(mutations.replacements(document), examples, check)


@many
@pytest.mark.parametrize("name", ["advbench", "alpaca", "dolly", "hex_phi", "wikitext2", "xstest"])
def test_damaged_data_sets_are_read_or_refused_without_a_word_of_them(name, examples, tmp_path):
    file = next(public_files.write(name, tmp_path / "data").iterdir())

    def check(content):
        file.write_bytes(content)
        try:
            found = data.load(name, tmp_path / "data")
        except InputError as problem:
            said = repr(problem) + repr(problem.__cause__) + repr(problem.__context__)
            assert not leaks.holds(said, public_files.CANARY), said
            return
        assert all(isinstance(prompt.text, str) for prompt in found)
        assert not leaks.holds(repr(found.prompts) + json.dumps(found.record.json()), public_files.CANARY)

    mutations.over(st.one_of(mutations.damaged(file.read_bytes()), BYTES), examples // 2, check)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "3", "[]", '{"text": 3, "answer": "a"}', '{"text": "a"}', "\x00", "9" * 5000]
)
def test_a_user_s_pairs_that_are_none_are_refused(line, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"line 1 of 'pairs\.jsonl'"):
        finetune.examples(tmp_path / "pairs.jsonl")


# headers of weights, before they are opened ---------------------------------------------------------------------------
TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def weights(folder, header):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(24))
    return sources.weights(folder)


@pytest.mark.parametrize(
    "header",
    [
        {"a": TENSOR | {"shape": [10**14, "ab"]}},  # a number times a text is a text of 200 TB
        {"a": TENSOR | {"shape": [-6, -1]}},
        {"a": TENSOR | {"shape": [1.5]}},
        {"a": TENSOR | {"shape": [True]}},
        {"a": TENSOR | {"shape": None}},
        {"a": TENSOR | {"data_offsets": [0, 10**12]}},
        {"a": TENSOR | {"data_offsets": "ab"}},
        {"a": 3},
        [TENSOR],
        b'{"a": ' + b"[" * 100_000,
        b'{"a": {}, "a": {}}',
        b"\xff",
    ],
)
def test_a_header_that_is_none_counts_as_a_missing_file(header, tmp_path):
    assert weights(tmp_path, header).missing == ("model.safetensors",)


@many
def test_any_header_is_counted_or_missing(examples, tmp_path):
    assert weights(tmp_path, {"a": TENSOR}) == sources.Weights((tmp_path / "model.safetensors").stat().st_size, 6, ())

    def check(one):
        found = weights(tmp_path, one[1])
        assert (type(found.numbers), found.numbers >= 0) == (int, True)

    mutations.over(
        mutations.replacements({"a": TENSOR, "b": TENSOR, "__metadata__": {"format": "pt"}}), examples, check
    )


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "..", "a/b.safetensors", "a" * 5000, "a\0b", ""]
)
def test_no_file_outside_a_folder_is_looked_at(shard, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "outside.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    assert sources.weights(tmp_path / "model").missing == (shard,)


# the command line -----------------------------------------------------------------------------------------------------
@many
def test_seeds_are_numbers_or_refused(examples):
    def check(text):
        found = outcome(lambda: pipeline.parse_seeds(text), repr(text))
        assert found is None or (found == sorted(set(found)) and found[0] >= 0 and len(found) <= text.count(",") + 1000)

    words = st.lists(st.sampled_from([*"0123456789,-- ", "999", "１", "٣", "1e3", "x"]), max_size=9).map("".join)
    mutations.over(st.one_of(words, st.text(max_size=9)), 5 * examples, check)


@many
@pytest.mark.parametrize("kind", ["int", "float", "bool", "str"])
def test_parameters_are_of_their_kind_or_refused(kind, examples):
    wanted = notebooks.Parameter("size", kind, notebooks.KINDS[kind](), "how many")

    def check(text):
        found = outcome(lambda: wanted.typed(text), "size", "how many", repr(text))
        assert found is None or type(found) is notebooks.KINDS[kind]
        assert kind != "float" or found is None or math.isfinite(found)

    words = st.sampled_from(
        ["nan", "inf", "-inf", "1e999", "1_000", "9" * 5000, "0x1", "１", " 3 ", "", "true", "FALSE", "-0"]
    )
    mutations.over(st.one_of(words, st.text(max_size=9), st.integers().map(str), st.floats().map(str)), examples, check)


@many
def test_a_profile_that_is_no_name_is_refused(examples):
    def check(text):
        assert text in profiles.names() or outcome(lambda: profile_files.file(text), repr(text)) is None

    words = st.sampled_from(["../profiles/tiny", "tiny.yaml", "tiny\n", "/etc/passwd", ".", "", "*", "TINY", "tin?"])
    mutations.over(st.one_of(words, st.text(max_size=12)), examples, check)
