"""The registry of claims, what a notebook records for it, and the verdict that follows.

Owns the shape of `data/claims.yaml`, the result files, and the words holds here, fails here, mixed, undecided, not
testable here, not run. The rules themselves are in `stats`; nothing here measures. Verdicts are computed: there is no
way to record one. Errors are for malformed input, never for an unlucky model.
"""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    ValidationError,
    model_validator,
)

from lib import paths, plain_data, provenance, stats, storage
from lib.errors import InputError, unknown
from lib.stats import Interval, Rule, Verdict

NO_CRITERION = "no criterion"  # shown of a claim without parts: nothing could decide it, so it was not left out
MIN_DRAWS = 5  # control draws a beats_control part needs (the registry's smaller number, where training is needed)

Row = dict[str, Any]  # a claim or a part in the ledger: JSON as it stands
Seed = Annotated[int, Field(ge=0, lt=10**6, strict=True)]


class ClaimVerdict(StrEnum):
    """What the parts say about a claim. Parts that could not be judged use the last two words too."""

    HOLDS = "holds here"
    FAILS = "fails here"
    MIXED = "mixed"
    UNDECIDED = "undecided"
    NOT_TESTABLE = "not testable here"
    NOT_RUN = "not run"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=_Frozen)


def checked(model: type[Model], value: Any, where: str, strict: bool = False) -> Model:
    """`value` as that record, or `InputError` that says `where` it stands and names every field that is wrong.

    `strict`: of JSON as a file has it, in which a number in quotes is none.
    """
    try:
        return model.model_validate_json(json.dumps(value), strict=True) if strict else model.model_validate(value)
    except ValidationError as problem:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in problem.errors())
        raise InputError(f"{where} cannot be used ({wrong}); correct it") from None


# --- registry ---------------------------------------------------------------------------------------------------------


class Part(_Frozen):
    """One number that decides a claim; `core` parts can make it fail. `was` keeps the text before a correction."""

    id: str
    core: StrictBool
    measure: str
    rule: Annotated[Rule, BeforeValidator(Rule.parse)]
    control: str | None = None
    note: str | None = None
    was: str | dict[str, Any] | None = None


class Claim(_Frozen):
    """A claim of a paper (or ours), where it stands, which notebook decides it and by what parts."""

    id: Annotated[str, Field(pattern=r"^[a-z]+(\.[a-z0-9_]+)+$")]
    claim: str
    where: str
    notebook: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    requires: str | None = None
    note: str | None = None
    parts: tuple[Part, ...]

    @model_validator(mode="after")
    def _consistent(self) -> "Claim":
        for one in self.parts:
            if not re.fullmatch(re.escape(self.id) + r"\.[a-z0-9_]+", one.id):
                raise ValueError(f"part {one.id!r} must be called {self.id}.<name>")
        if not self.parts and self.note is None:
            raise ValueError("a claim without parts needs a note that says why")
        if self.parts and not any(one.core for one in self.parts):
            raise ValueError("no part is core, so the claim could never fail")
        return self


def registry_from(path: Path) -> dict[str, Claim]:
    """A registry file, checked; `InputError` names the claim and the field that is wrong."""
    rows = plain_data.read_yaml(path)
    if not isinstance(rows, list):
        raise InputError(f"{path.name} must be a list of claims")
    names = [row.get("id") if isinstance(row, dict) else None for row in rows]
    found = [
        checked(Claim, row, f"{path.name}, claim {name or f'number {number}'}")
        for number, (name, row) in enumerate(zip(names, rows, strict=True), start=1)
    ]
    ids = [one for owner in found for one in (owner.id, *(part.id for part in owner.parts))]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise InputError(f"{path.name} has ids more than once: {', '.join(twice)}; rename all but one")
    return {owner.id: owner for owner in found}


@cache
def registry() -> dict[str, Claim]:
    """Every claim of `data/claims.yaml` by id, in its order."""
    return registry_from(paths.CLAIMS)


def claim(claim_id: str) -> Claim:
    """The claim of that id; `InputError` with the known ones otherwise."""
    if claim_id not in registry():
        raise unknown("claim", claim_id, registry())
    return registry()[claim_id]


def part(part_id: str) -> Part:
    """The part of that id; `InputError` with the known ones otherwise."""
    known = {one.id: one for owner in registry().values() for one in owner.parts}
    if part_id not in known:
        raise unknown("part", part_id, known)
    return known[part_id]


# --- what a notebook records ------------------------------------------------------------------------------------------


class Measurement(_Frozen):
    """One part under one seed: `value` with `n` prompts behind it, None with a reason when it is undefined here."""

    value: float | None
    n: Annotated[int, Field(ge=0)]
    interval: tuple[float, float] | None
    controls: tuple[float, ...]
    detail: JsonValue
    reason: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Measurement":
        if (self.value is None) != bool(self.reason):
            raise ValueError(
                f"value {self.value} with reason {self.reason!r}; a reason stands exactly where no value does"
            )
        if self.interval and self.interval[0] > self.interval[1]:
            raise ValueError(f"the lower bound {self.interval[0]} lies above the upper bound {self.interval[1]}")
        return self


class Requirement(_Frozen):
    """Whether a claim can be tested on this model at all."""

    met: bool
    reason: str


class ResultFile(_Frozen):
    """What one notebook found under one profile and seed (design, section 3)."""

    code: str
    profile: str
    seed: Seed
    notebook: str
    parts: dict[str, Measurement]
    requires: dict[str, Requirement]
    facts: dict[str, JsonValue]


def _json(value: Any, what: str) -> Any:
    """`value` as JSON has it; arrays and tensors become lists."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=lambda item: item.tolist()))
    except (TypeError, ValueError, AttributeError) as problem:
        raise InputError(f"{what} is no JSON ({problem}); give finite numbers, text, lists and dicts") from None


def _new(name: str, known: Iterable[str], recorded: Mapping[str, Any], kind: str) -> None:
    known = list(known)
    if name not in known:
        raise unknown(kind, name, known)
    if name in recorded:
        raise InputError(f"{name} is recorded twice; record it once, or run the notebook from its top")


class Results:
    """Collects what one run of a notebook finds, and writes it once it is complete.

    Make it at the top of the notebook: the code is hashed then. `root` is the checkout.
    """

    def __init__(self, *, notebook: str, profile: str, seed: int, root: Path = paths.ROOT) -> None:
        code = provenance.code_hash(notebook, profile, root)
        self._head: Row = {"code": code, "profile": profile, "seed": seed, "notebook": notebook}
        self._claims = [one for one in registry().values() if one.notebook == notebook[3:]]
        self._rules = {one.id: one.rule for owner in self._claims for one in owner.parts}
        self._parts: dict[str, Measurement] = {}
        self._requires: dict[str, Requirement] = {}
        self._facts: dict[str, Any] = {}
        self._untestable: str | None = None
        self._file()

    def testable(self, met: bool, reason: str) -> None:
        """From here on, parts are recorded as not testable for this `reason` unless `met`: a model that does not do
        what a claim is about says nothing about it, whatever its numbers are."""
        if not met and not reason:
            raise InputError("what is not testable needs a reason; say what was found")
        self._untestable = None if met else reason

    def part(
        self,
        part_id: str,
        value: Any,
        n: int,
        *,
        interval: Interval | None = None,
        controls: Iterable[Any] = (),
        detail: Any = None,
        reason: str | None = None,
    ) -> None:
        """Record the value of a part over `n` prompts, its interval over prompts and its control draws.

        `value` (a number or a one-element tensor) is None only with a `reason`, such as a shift of zero. For
        beats_control, value and interval are the effect's own, nothing subtracted; larger must mean more effect.
        """
        _new(part_id, self._rules, self._parts, f"part of notebook {self._head['notebook']}")
        if self._untestable:
            value, interval, controls, reason = None, None, (), self._untestable
        if (value is None) != bool(reason):
            raise InputError(f"{part_id} has value {value}, reason {reason!r}; give a reason exactly if value is None")
        draws = [float(draw) for draw in controls]
        if value is not None and self._rules[part_id].kind == "beats_control" and len(draws) < MIN_DRAWS:
            raise InputError(f"{part_id} has {len(draws)} control draws; beats_control needs at least {MIN_DRAWS}")
        number = None if value is None else float(value)
        if interval is not None and (number is None or abs(interval.mean - number) > 1e-5 * max(1.0, abs(number))):
            raise InputError(f"{part_id} is {number} but its interval is around {interval.mean}; pass its own interval")
        found: Row = {"value": number, "n": n, "interval": interval.bounds if interval else None, "controls": draws}
        found |= {"detail": _json(detail, f"detail of {part_id}"), "reason": reason}
        self._parts[part_id] = checked(Measurement, found, part_id)

    def requires(self, claim_id: str, *, met: bool, reason: str = "") -> None:
        """Say whether the requirement of a claim is met here; a reason, with the number, is needed if it is not."""
        known = (one.id for one in self._claims if one.requires)
        _new(claim_id, known, self._requires, f"claim with a requirement in notebook {self._head['notebook']}")
        if not met and not reason:
            raise InputError(f"the requirement of {claim_id} is unmet without a reason; say what was found")
        self._requires[claim_id] = Requirement(met=bool(met), reason=reason)

    def fact(self, name: str, value: Any) -> None:
        """Record a number or table that decides nothing but is worth reading elsewhere."""
        _new(name, [name], self._facts, "fact")
        self._facts[name] = _json(value, f"fact {name!r}")

    def _file(self) -> ResultFile:
        found = {"parts": self._parts, "requires": self._requires, "facts": self._facts}
        return checked(ResultFile, self._head | found, "the result")

    def verdicts(self) -> list[Row]:
        """Rows of this notebook's claims from this seed alone, marked `one_model`; show them by `verdict_table`."""
        file = self._file()
        return [judge_claim(one, {file.seed: file}, file.profile) for one in self._claims]

    def missing(self) -> list[str]:
        """The parts that are not recorded yet."""
        return [one for one in self._rules if one not in self._parts]

    def save(self, folder: Path | None = None) -> Path:
        """Write `<run folder>/results/<notebook>.json` and return its path; refused while anything is missing."""
        missing = self.missing()
        missing += [f"requires {one.id}" for one in self._claims if one.requires and one.id not in self._requires]
        if missing:
            raise InputError(f"not recorded yet: {', '.join(missing)}; record each, then save")
        file = self._file()
        path = paths.result_file(folder or paths.run_folder(file.profile, file.seed) / "results", file.notebook)
        storage.write_json(path, file.model_dump(mode="json"))
        return path


def stopped(notebook: str, profile: str, seed: int, reason: str) -> Path:
    """Write the result of a notebook that could not be run to its end here: none of its parts is testable."""
    results = Results(notebook=notebook, profile=profile, seed=seed)
    results.testable(False, reason)
    for part in results.missing():
        results.part(part, None, 0)
    for claim in (one for one in registry().values() if one.notebook == notebook[3:] and one.requires):
        results.requires(claim.id, met=False, reason=reason)
    return results.save()


# --- verdicts ---------------------------------------------------------------------------------------------------------


def _judge_part(part: Part, runs: Mapping[int, ResultFile]) -> Row:
    """One part over the seeds that have it. `interval` is of the value, for beats_control of effect minus control."""
    found = {seed: run.parts[part.id] for seed, run in sorted(runs.items()) if part.id in run.parts}
    if part.rule.kind == "beats_control":
        found = {seed: one for seed, one in found.items() if one.controls or one.value is None}
    valued = {seed: one for seed, one in found.items() if one.value is not None}
    row: Row = {"id": part.id, "core": part.core, "measure": part.measure, "rule": part.rule.in_words}
    row |= dict.fromkeys(("measured", "interval", "interval_over", "n", "controls"))
    row["seeds"] = {str(seed): one.value for seed, one in valued.items()}
    without = [f"seed {seed} left out: not recorded; run the notebook" for seed in runs if seed not in found]
    without += [f"seed {seed} left out: {one.reason}" for seed, one in found.items() if one.value is None]
    if valued:
        verdict, numbers = _judge_values(part.rule, list(valued.values()))
        row |= numbers | {"verdict": verdict.value}
        without += ["one seed and no interval over prompts"] if row["interval"] is None else []
    if not found:
        row["verdict"] = ClaimVerdict.NOT_RUN.value
    elif 2 * len(valued) < len(found):
        row["verdict"] = ClaimVerdict.NOT_TESTABLE.value
    return row | {"reason": "; ".join(without) or None}


def _judge_values(rule: Rule, measured: Sequence[Measurement]) -> tuple[Verdict, Row]:
    values = [float(one.value) for one in measured if one.value is not None]
    draws = [one.controls for one in measured] if all(one.controls for one in measured) else []
    prompts, (low, high) = None, measured[0].interval or (None, None)
    if len(values) == 1:
        prompts = Interval(mean=values[0], lower=low, upper=high, n=measured[0].n, kind="prompts")
    verdict, interval, control = stats.judge(rule, values, draws, prompts)
    row: Row = {"measured": statistics.mean(values), "n": min(one.n for one in measured)}
    if interval.bounds is not None:
        row |= {"interval": list(interval.bounds), "interval_over": "seeds" if prompts is None else "prompts"}
    if control is not None:
        margin = statistics.mean(value - statistics.mean(one) for value, one in zip(values, draws, strict=True))
        summary = {"draws": len(control.draws), "mean": statistics.mean(control.draws)}
        row["controls"] = summary | {"p95": control.high, "margin": margin}
    return verdict, row


def _claim_verdict(parts: Sequence[Row]) -> ClaimVerdict:
    """The registry's words; a core part that could not be judged keeps a claim from holding or being mixed."""
    every, core = {row["verdict"] for row in parts}, {row["verdict"] for row in parts if row["core"]}
    if every == {Verdict.HOLDS}:
        return ClaimVerdict.HOLDS
    if Verdict.FAILS in core:
        return ClaimVerdict.FAILS
    for missing in (ClaimVerdict.NOT_RUN, ClaimVerdict.NOT_TESTABLE):
        if missing in core:
            return missing
    return ClaimVerdict.MIXED if every >= {Verdict.HOLDS, Verdict.FAILS} else ClaimVerdict.UNDECIDED


def judge_claim(claim: Claim, runs: Mapping[int, ResultFile], model: str) -> Row:
    """The ledger's row of a claim from the results of its notebook, by seed.

    Seeds whose requirement is unmet, or which gave no part a value, are left out and named; when those with an unmet
    requirement are the majority, the claim is not testable and its parts keep their numbers without a verdict. With one
    seed, intervals are over prompts, the row is `one_model`. Where no seed has a value, `seeds` are those run.
    """
    ready = {seed: run for seed, run in sorted(runs.items()) if not claim.requires or claim.id in run.requires}
    wants = {seed: run.requires[claim.id] for seed, run in ready.items()} if claim.requires else {}
    left_out = {str(seed): "requirement not recorded; run the notebook" for seed in sorted(runs) if seed not in ready}
    unmet = {seed: want.reason for seed, want in wants.items() if not want.met}
    untestable = 2 * len(unmet) > len(ready)
    used = ready if untestable else {seed: run for seed, run in ready.items() if seed not in unmet}
    parts = [_judge_part(one, used) for one in claim.parts]
    reason: str | None
    if not claim.parts or not ready:
        verdict, reason = ClaimVerdict.NOT_RUN, "no results yet; run its notebook" if claim.parts else claim.note
    elif untestable:
        found = "; ".join(f"seed {seed}: {why}" for seed, why in unmet.items())
        verdict, reason = ClaimVerdict.NOT_TESTABLE, f"requires: {claim.requires}. Unmet at {found}"
        parts = [row | {"verdict": verdict.value, "reason": "requirement unmet"} for row in parts]
    else:
        verdict, left_out = _claim_verdict(parts), left_out | {str(seed): why for seed, why in unmet.items()}
        reason = "; ".join(f"{row['id']} {row['verdict']}" for row in parts if row["verdict"] != Verdict.HOLDS) or None
    row: Row = {"id": claim.id, "claim": claim.claim, "where": claim.where, "model": model, "notebook": claim.notebook}
    without = _without_value(parts, used)
    seeds = [seed for seed in used if seed not in without] or list(used)
    if len(seeds) < len(used):
        left_out = left_out | {str(seed): why for seed, why in without.items()}
    row |= {"verdict": verdict.value, "reason": reason, "one_model": len(seeds) == 1 and bool(parts), "parts": parts}
    return row | {"seeds": seeds, "left_out": left_out}


def _without_value(parts: Sequence[Row], runs: Mapping[int, ResultFile]) -> dict[int, str]:
    """Seeds that have a value for none of the parts, with the reason of the first."""
    names, found = [row["id"] for row in parts], {}
    for seed, run in runs.items():
        mine = [run.parts[name] for name in names if name in run.parts]
        if all(one.value is None for one in mine):
            found[seed] = next((one.reason for one in mine if one.reason), "not recorded; run the notebook")
    return found if parts else {}


def verdict_of(row: Row) -> str:
    """The verdict of a claim as it is shown: the stored one, or `NO_CRITERION` where no part could decide it."""
    return str(row["verdict"]) if row["parts"] else NO_CRITERION


def verdict_table(rows: Sequence[Row]) -> pd.DataFrame:
    """One line a part (or a claim without parts) for a notebook to show; text, ready to read.

    Of a part that is held against its control the interval is of value minus control, and says so.
    """
    lines = []
    for owner in rows:
        bare = {"measure": owner["claim"], "rule": "", "measured": None, "interval": None, "verdict": verdict_of(owner)}
        for row in owner["parts"] or [owner | bare]:
            value = "" if row["measured"] is None else f"{row['measured']:.3g}"
            interval = "" if row["interval"] is None else "{:.3g} to {:.3g}".format(*row["interval"])
            if interval and owner["parts"] and row["rule"] == stats.AGAINST_CONTROL:
                interval += ", value minus control"
            verdict = row["verdict"] + (" (one model)" if owner["one_model"] and value else "")
            lines.append((row["id"], row["measure"], row["rule"], value, interval, verdict))
    return pd.DataFrame(lines, columns=["part", "measures", "rule", "value", "interval", "verdict"])
