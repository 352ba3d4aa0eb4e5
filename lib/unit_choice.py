"""Which other score, position and normalisation serves best: chosen on two models that decide nothing (`ssah.4.best`).

Owns the choice and its record, `unit_choice.json`. Run `python -m lib.unit_choice --profile kingdom --seeds 5,6`, then
write what was chosen into the profile (`units.best`, `units.strongest`); a test holds the two together.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lib import claims, models, paths, profiles, prompt_sets, storage, unit_scores, unit_tables, units
from lib.errors import InputError

RULE = ["score", "position", "normalisation"]
_PAPER = (*unit_scores.PAPER, "z")


def bounds() -> tuple[float, float]:
    """The rise of attack success and the drop in utility that the registry asks for."""
    parts = [claims.part(f"ssah.4.best.{name}") for name in ("scu", "scu_utility")]
    rise, cost = (float(part.rule.bound or 0.0) for part in parts)
    return rise, cost


def candidates(profile: str, seed: int) -> pd.DataFrame:
    """Every rule but the paper's on one model, zero removal: its cut-search share of SCU and what removing them does to
    held-out prompts."""
    cuts = profiles.load(profile).units.cuts
    chat = models.load(profile, "chat", seed)
    found = unit_scores.calibrate(chat, prompt_sets.calibration(profile, seed))
    practice, heldout = unit_tables.practice(profile, seed), unit_tables.heldout(profile, seed)
    dense, rows = unit_tables.observe(chat, heldout).iloc[0], []
    for (score, position), raw in found.raw.items():
        for normalisation in unit_tables.usable(score):
            if (score, position, normalisation) == _PAPER:
                continue
            table = units.score(raw, normalisation)
            shares, _ = unit_tables.cut_search(chat, table, cuts, practice, ("ru", "scu"))
            scu = units.groups(table, **shares).query("group == 'scu'")
            change = unit_tables.observe(chat, heldout, units.edits(scu)).iloc[0] - dense
            effect = (change["attack_success"], -change["utility"], change["false_refusal"])
            rows.append((score, position, normalisation, seed, shares["scu"], len(scu), *effect))
    columns = [*RULE, "seed", "share", "units", "rise", "utility_drop", "false_refusal_rise"]
    return pd.DataFrame(rows, columns=columns)


def choose(rows: pd.DataFrame, rise: float, cost: float) -> tuple[dict[str, str], str]:
    """The best rule over all seeds, and by which of three criteria, tried in order.

    The largest mean rise among rules that cost at most `cost` utility on every seed; if there are none, the smallest
    mean cost among those with a mean rise of at least `rise`; else the largest mean rise. Ties go to the first.
    """
    over = _over_seeds(rows)
    cheap, strong = over[over["worst"].round(9) <= cost], over[over["rise"].round(9) >= rise]
    if len(cheap):
        return _rule(cheap, "rise"), f"largest rise among rules that cost at most {cost:g} on every seed"
    if len(strong):
        return _rule(strong.assign(thrift=-strong["cost"]), "thrift"), f"smallest cost among rises of at least {rise:g}"
    return strongest(rows), "largest rise; no rule is cheap and none strong"


def strongest(rows: pd.DataFrame) -> dict[str, str]:
    """The rule with the largest mean rise of attack success, whatever it costs. It decides nothing."""
    return _rule(_over_seeds(rows), "rise")


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    named = {"rise": ("rise", "mean"), "cost": ("utility_drop", "mean"), "worst": ("utility_drop", "max")}
    return rows.groupby(RULE, sort=False).agg(**named).reset_index()


def _rule(over: pd.DataFrame, key: str) -> dict[str, str]:
    first = over.sort_values(key, ascending=False, kind="stable").iloc[0]
    return {name: str(first[name]) for name in RULE}


def record_path(profile: str) -> Path:
    """Beside the published results, or for profiles that are not published among what a run leaves."""
    return (paths.RESULTS if profiles.load(profile).published else paths.BUILD) / profile / "unit_choice.json"


def run(profile: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Measure every rule on every seed, choose, and write the record."""
    taken = sorted(set(seeds) & set(profiles.load(profile).seeds)) if profiles.load(profile).published else []
    if not seeds or taken:
        raise InputError(f"seeds {taken or list(seeds)} cannot choose: they decide claims; take others, such as 5,6")
    rows = pd.concat([candidates(profile, seed) for seed in seeds])
    rise, cost = bounds()
    chosen, why = choose(rows, rise, cost)
    record: dict[str, Any] = {"profile": profile, "seeds": list(seeds), "removal": "zero", "chosen": chosen, "why": why}
    record["strongest"] = strongest(rows)
    record["rows"] = [_rounded(row) for row in rows.to_dict("records")]
    storage.write_json(record_path(profile), record)
    return record


def recorded() -> pd.DataFrame:
    """The published record for a page: one row a rule, the largest mean rise first."""
    record = storage.read_json(record_path("kingdom"))
    rows = pd.DataFrame(record["rows"])
    found = {"mean rise": rows.groupby(RULE)["rise"].mean()}
    for seed, part in rows.groupby("seed"):
        part = part.set_index(RULE)
        found |= {f"rise, seed {seed}": part["rise"], f"utility drop, seed {seed}": part["utility_drop"]}
    return pd.DataFrame(found).sort_values("mean rise", ascending=False, kind="stable")


def _rounded(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): round(value, 6) + 0.0 if isinstance(value, float) else value for name, value in row.items()}


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.unit_choice --profile P --seeds 5,6`: write unit_choice.json."""
    parser = argparse.ArgumentParser(prog="python -m lib.unit_choice", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="kingdom")
    parser.add_argument("--seeds", default="5,6", help="models to choose on, separated by commas")
    options = parser.parse_args(arguments)
    try:
        run(options.profile, [int(seed) for seed in options.seeds.split(",")])
    except (InputError, ValueError) as problem:
        parser.exit(2, f"{problem}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
