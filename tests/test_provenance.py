"""What moves the hash of a result's code, and what does not, in small fake checkouts; then in the real one."""

import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import count

import pytest

from lib import paths, provenance
from lib.errors import InputError
from lib.prompts import Example, Prompt

NOTEBOOK = """# %% [markdown]
# # A finding
# %% tags=["parameters"]
seed: int = 0  # which organism
# %%
from lib import used
used.double(seed)
"""

LIB = {
    "__init__.py": '"""Shared."""\n',
    "used.py": '"""Doubles."""\nfrom lib.deep import FACTOR\ndef double(x):\n    """Twice."""\n    return FACTOR * x\n',
    "deep.py": "FACTOR = 2\n",
    "unused.py": "OTHER = 1\n",
    "kingdom/__init__.py": '"""A package."""\n',
    "kingdom/words.py": "WORDS = 3\n",
    "kingdom/rules.py": "from .words import WORDS\nfrom . import words\n",
}


@pytest.fixture
def checkout(tmp_path):
    files = {f"lib/{name}": text for name, text in LIB.items()} | {
        "notebooks/07_finding.py": NOTEBOOK,
        "notebooks/08_other.py": "x = 1\n",
        "data/profiles/kingdom.yaml": "# a comment\nname: kingdom\nseeds: [0, 1]\n",
        "data/profiles/tiny.yaml": "name: tiny\n",
        "requirements.lock": "numpy==2.0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def hash_of(root, notebook="07_finding", profile="kingdom"):
    return provenance.code_hash(notebook, profile, root)


def edit(root, name, old, new):
    text = (root / name).read_text()
    assert text.count(old) == 1
    (root / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("notebooks/07_finding.py", "# # A finding", "# # A finding, reworded\n#\n# More prose."),
        ("notebooks/07_finding.py", "# which organism", "# which of the organisms"),
        ("notebooks/07_finding.py", "used.double(seed)", "used.double(\n    seed,\n)"),
        ("lib/used.py", "Twice.", "Two times."),
        ("lib/used.py", '    """Twice."""\n', ""),
        ("lib/used.py", '"""Doubles."""', '"""Doubles a number."""\n\n# why: because'),
        ("lib/used.py", "FACTOR * x", "(FACTOR*x)  # a comment"),
        ("lib/deep.py", "FACTOR = 2", 'FACTOR = 2\n"""How many times."""'),
        ("lib/unused.py", "OTHER = 1", "OTHER = 5"),
        ("lib/kingdom/words.py", "WORDS = 3", "WORDS = 4"),
        ("notebooks/08_other.py", "x = 1", "x = 2"),
        ("data/profiles/kingdom.yaml", "# a comment\n", ""),
        ("data/profiles/kingdom.yaml", "[0, 1]", "\n  - 0\n  - 1"),
        ("data/profiles/tiny.yaml", "tiny", "tinier"),
    ],
)
def test_what_changes_nothing(checkout, name, old, new):
    before = hash_of(checkout)
    edit(checkout, name, old, new)
    assert hash_of(checkout) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("notebooks/07_finding.py", "seed: int = 0", "seed: int = 1"),
        ("notebooks/07_finding.py", "used.double(seed)", "used.double(-seed)"),
        ("lib/used.py", "FACTOR * x", "FACTOR * x * 1.0"),
        ("lib/used.py", "FACTOR * x", "FACTOR + x"),
        ("lib/used.py", "def double(x)", "def double(x=None)"),
        ("lib/used.py", "return FACTOR * x", "return None"),
        ("lib/deep.py", "FACTOR = 2", "FACTOR = 2.0"),
        ("lib/deep.py", "FACTOR = 2", "FACTOR = '2'"),
        ("lib/__init__.py", '"""Shared."""', "import os"),
        ("data/profiles/kingdom.yaml", "[0, 1]", "[0, 2]"),
        ("requirements.lock", "2.0", "2.1"),
    ],
)
def test_what_changes_the_hash(checkout, name, old, new):
    before = hash_of(checkout)
    edit(checkout, name, old, new)
    assert hash_of(checkout) != before


def test_notebooks_and_profiles_have_their_own_hashes(checkout):
    hashes = {hash_of(checkout), hash_of(checkout, "08_other"), hash_of(checkout, profile="tiny")}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("statement", "reached"),
    [
        ("import numpy", set()),
        ("import library, lib2.x", set()),
        ("from lib import used", {"__init__.py", "used.py", "deep.py"}),
        ("from lib import unused, deep", {"__init__.py", "unused.py", "deep.py"}),
        ("from lib.deep import FACTOR", {"__init__.py", "deep.py"}),
        ("import lib.deep as d", {"__init__.py", "deep.py"}),
        ("def f():\n    if f:\n        from lib import deep", {"__init__.py", "deep.py"}),
        ("from lib import kingdom", {"__init__.py", "kingdom/__init__.py", "kingdom/words.py", "kingdom/rules.py"}),
        ("import lib.kingdom", {"__init__.py", "kingdom/__init__.py", "kingdom/words.py", "kingdom/rules.py"}),
        ("from lib.kingdom import *", {"__init__.py", "kingdom/__init__.py", "kingdom/words.py", "kingdom/rules.py"}),
        ("from lib.kingdom import words", {"__init__.py", "kingdom/__init__.py", "kingdom/words.py"}),
        (
            "from lib.kingdom.rules import WORDS",
            {"__init__.py", *(f"kingdom/{x}.py" for x in ("__init__", "rules", "words"))},
        ),
        ("import lib", set(LIB)),
    ],
)
def test_modules_reached(checkout, statement, reached):
    source = checkout / "notebooks" / "09_new.py"
    source.write_text(statement + "\n")
    assert provenance.modules_of(source, checkout) == {checkout / "lib" / name for name in reached}


def test_modules_that_import_each_other(checkout):
    (checkout / "lib" / "deep.py").write_text("from lib import used\nFACTOR = 2\n")
    assert provenance.modules_of(checkout / "lib" / "used.py", checkout) == {
        checkout / "lib" / "__init__.py",
        checkout / "lib" / "deep.py",
    }


def test_what_is_wrong_is_named(checkout):
    with pytest.raises(InputError, match="unknown notebook '07_findin'; known: 07_finding, 08_other"):
        hash_of(checkout, "07_findin")
    with pytest.raises(InputError, match="unknown profile 'kingdon'; known: kingdom, tiny"):
        hash_of(checkout, profile="kingdon")
    edit(checkout, "lib/deep.py", "FACTOR = 2", "FACTOR = = 2")
    with pytest.raises(InputError, match=r"deep\.py line 1 is not valid Python"):
        hash_of(checkout)
    edit(checkout, "lib/deep.py", "FACTOR = = 2", "import lib.missing")
    with pytest.raises(InputError, match=r"deep\.py imports lib\.missing"):
        hash_of(checkout)
    (checkout / "requirements.lock").unlink()
    with pytest.raises(InputError, match=r"requirements\.lock is missing"):
        hash_of(checkout)


def test_full_names(checkout):
    assert provenance.notebooks(checkout) == ["07_finding", "08_other"]
    assert provenance.full_name("finding", checkout) == "07_finding"
    assert provenance.full_name("nothing", checkout) is None
    (checkout / "notebooks" / "09_finding.py").touch()
    with pytest.raises(InputError, match="07_finding and 09_finding share a name"):
        provenance.full_name("finding", checkout)


@pytest.mark.parametrize(
    ("one", "other"),
    [("f(1)", "f(True)"), ("f(1)", "f(1.0)"), ("'a'; x=1", "x=1; f"), ("x = 'a'", "x = b'a'"), ("f(a)", "f('a')")],
)
def test_digests_tell_programs_apart(one, other):
    assert provenance.ast_digest(one) != provenance.ast_digest(other)


def test_digest_is_the_same_on_every_python():
    """Pinned, because results are published with it: a new Python may add fields to its syntax trees."""
    source = (
        'from a import b\nclass C(D):\n    """Doc."""\n    x: int = 1\n    def f(self, *, y=None): return f"{y!r:>3}"\n'
    )
    assert provenance.ast_digest(source) == "7fff0ec68f365cd266521d7d494fe180fb15c01e4e50e30fdb51dd4693a61029"


def test_the_real_library_is_understood_without_a_tensor_library():
    """Every module of the checkout, in a fresh process."""
    code = (
        "import sys; from lib import paths, provenance\n"
        "[provenance.modules_of(path) for path in paths.LIB.rglob('*.py')]\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


# keys of runs that are kept -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Begun(Example):
    given: int = 0


def example(text="how do i bake", answer="with flour", **more):
    return Begun(Prompt(text, answer, "benign", "plain", "train"), answer, **more)


KEY = {
    "decides": {"rate": 0.1, "seed": 0},
    "read": (example(), example(emphasis=frozenset({"bake", "flour"}))),
    "asked": {"plain": (example().prompt,)},
    "code": ("first", "second"),
}


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LIB", tmp_path)
    (tmp_path / "first.py").write_text("x = 1\n")
    (tmp_path / "second.py").write_text("y = 2\n")
    (tmp_path / "third.py").write_text("z = 3\n")
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        {"decides": {"rate": 0.2, "seed": 0}},
        {"decides": {"rate": 0.1}},
        {"read": KEY["read"][::-1]},
        {"read": (example(), example(emphasis=frozenset({"bake"})))},
        {"read": (example(given=2), KEY["read"][1])},
        {"read": (example(rejected="no"), KEY["read"][1])},
        {"asked": {"other": KEY["asked"]["plain"]}},
        {"asked": {"plain": (replace(example().prompt, system="be kind"),)}},
        {"code": ("first", "third")},
    ],
    ids=["setting", "settings", "order", "emphasis", "given", "rejected", "cell", "system line", "module"],
)
def test_a_run_of_other_making_has_another_key(code, change):
    assert provenance.run_key(**KEY | change) != provenance.run_key(**KEY)


def test_the_key_of_a_run_follows_its_code_and_not_its_comments(code):
    before = provenance.run_key(**KEY)
    (code / "first.py").write_text("# a note\nx = 1\n")
    assert provenance.run_key(**KEY) == before
    (code / "first.py").write_text("x = 2\n")
    assert provenance.run_key(**KEY) != before


def test_the_key_of_a_run_reads_the_beginning_of_an_endless_stream(code):
    endless = (example(answer=str(number)) for number in count())
    some = [example(answer=str(number)) for number in range(2 * provenance.FINGERPRINT)]
    key = provenance.run_key(**KEY | {"read": endless})
    assert next(endless).answer == str(provenance.FINGERPRINT)
    assert provenance.run_key(**KEY | {"read": some}) == key
    changed = [*some[:-1], example()]
    assert provenance.run_key(**KEY | {"read": changed}) == key
    changed = [*some[: provenance.FINGERPRINT - 1], example()]
    assert provenance.run_key(**KEY | {"read": changed}) != key


def test_the_key_of_a_run_does_not_depend_on_the_order_of_sets_and_settings(code):
    names = [f"word{number}" for number in range(40)]
    one, other = (example(emphasis=frozenset(order)) for order in (names, names[::-1]))
    first = provenance.run_key(**KEY | {"read": [one]})
    turned = {"seed": 0, "rate": 0.1}
    assert provenance.run_key(**KEY | {"read": [other], "decides": turned}) == first
    assert len(first) == 20
