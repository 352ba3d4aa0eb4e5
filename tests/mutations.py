"""Documents with something wrong in them, for hypothesis: a valid one with parts left out, added or replaced."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")
EXTRA = "extra_field"
Place = tuple[Any, ...]  # keys and indices from the top of a document
_NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, -1, 1, 10**9, 10**30, 1e308, -0.0, 0.5, 1.0])
)
_TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "0", "1", "true", "null", "~", "../x", "/etc/passwd", "a\nb", "\u202e", "é" * 3, "x" * 5000]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS)
_NAMES = st.text(max_size=5)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=3)),
    max_leaves=5,
)
BYTES = st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))


def places(document: Any, at: Place = ()) -> Iterator[Place]:
    """Every place of a document below its top."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


def at(document: Any, place: Place) -> Any:
    for key in place:
        document = document[key]
    return document


def dropped(document: Any, place: Place) -> Any:
    found = copy.deepcopy(document)
    del at(found, place[:-1])[place[-1]]
    return found


def replaced(document: Any, place: Place, value: Any) -> Any:
    found = copy.deepcopy(document)
    at(found, place[:-1])[place[-1]] = value
    return found


def added(document: Any, place: Place, value: Any, name: str = EXTRA) -> Any:
    """With one more field in the mapping at `place`."""
    return replaced(document, (*place, name), value)


@st.composite
def drops(draw: Any, document: Any) -> tuple[Place, Any]:
    place = draw(st.sampled_from(list(places(document))))
    return place, dropped(document, place)


@st.composite
def replacements(draw: Any, document: Any) -> tuple[Place, Any]:
    """Another value, of any kind, or one that stands elsewhere in the document, or the same one level deeper."""
    every = list(places(document))
    place = draw(st.sampled_from(every))
    here = at(document, place)
    value = draw(
        st.one_of(
            JUNK, st.sampled_from(every).map(lambda other: at(document, other)), st.just([here]), st.just({"a": here})
        )
    )
    return place, replaced(document, place, copy.deepcopy(value))


@st.composite
def additions(draw: Any, document: Any, free: Callable[[Place], bool]) -> tuple[Place, Any]:
    """With a field that nothing knows, in any mapping but those where any name is right (`free`)."""
    mappings = [place for place in [(), *places(document)] if isinstance(at(document, place), dict) and not free(place)]
    place = draw(st.sampled_from(mappings))
    return place, added(document, place, draw(JUNK))


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """A file's bytes with some cut out, put in, or said again."""
    start = draw(st.integers(0, len(content)))
    end = min(len(content), start + draw(st.integers(0, 40)))
    middle = draw(st.one_of(st.just(b""), BYTES, st.just(2 * content[start:end])))
    return content[:start] + middle + content[end:]


def same(one: Any, other: Any) -> bool:
    """Whether two documents say the same: lists and tuples are one kind, whole numbers are numbers, truth is none."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def over(inputs: Any, examples: int, check: Callable[[Any], None]) -> None:
    """Call `check` with `examples` inputs, the same in every run; hypothesis shows the smallest that fails."""
    quiet = [
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    ]

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=quiet)
    @given(inputs)
    def run(one: Any) -> None:
        check(one)

    run()
