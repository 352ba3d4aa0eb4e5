"""Which verdicts change with the size of a model: verdicts by size, how often two agree, and what a size costs.

Owns the comparison that decides hd.13 and its tables. Verdicts are the registry's, computed by `claims` from what
`sizes` measured; nothing is measured here. Two verdicts agree when they are the same word and both could be judged: a
size that is no fair test keeps no verdict. "Undecided" agrees with "undecided", which is counted apart.
"""

from itertools import combinations, product

import pandas as pd

from lib import claims, profiles, stats
from lib.claims import ClaimVerdict
from lib.profiles import Trained
from lib.sizes import DIRECTION, REMOVAL, Runs

CLAIMS = (DIRECTION, REMOVAL)
LEAST_SIZES = 4  # the registry: "of 4 or more"
OVER_SEEDS = "all"  # in place of a seed: the verdict over all seeds together
_UNJUDGED = (ClaimVerdict.NOT_TESTABLE.value, ClaimVerdict.NOT_RUN.value)

Pair = tuple[tuple[str, str], tuple[str, str]]  # of (size, seed)


def agree(one: str, other: str) -> bool:
    """Whether two verdicts are the same, and are verdicts."""
    return one == other and one not in _UNJUDGED


# verdicts -------------------------------------------------------------------------------------------------------------
def verdicts(runs: Runs) -> pd.DataFrame:
    """The verdict on both claims by size and seed, from that model family alone, and over all seeds together.

    Columns size, parameters, claim, seed (text, `OVER_SEEDS` for all), verdict.
    """
    rows = []
    for name, by_seed in runs.items():
        files = {seed: one.file for seed, one in by_seed.items()}
        groups = {str(seed): {seed: file} for seed, file in files.items()} | {OVER_SEEDS: files}
        for claim, (seed, chosen) in product(CLAIMS, groups.items()):
            found = claims.judge_claim(claims.claim(claim), chosen, name)
            rows.append((name, _parameters(runs, name), claim, seed, found["verdict"]))
    return pd.DataFrame(rows, columns=["size", "parameters", "claim", "seed", "verdict"])


def _parameters(runs: Runs, name: str) -> int:
    return next(iter(runs[name].values())).parameters


def verdict_table(found: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` to read: a row a size, columns claim and seed."""
    wide = found.pivot(index="size", columns=["claim", "seed"], values="verdict")
    return wide.loc[list(dict.fromkeys(found["size"])), list(product(CLAIMS, dict.fromkeys(found["seed"])))]


# parts ----------------------------------------------------------------------------------------------------------------
def parts(runs: Runs) -> pd.DataFrame:
    """Every part by size and seed: columns size, parameters, part, seed, value, control (mean of its draws, if any)."""
    rows = []
    for name, by_seed in runs.items():
        for seed, measured in by_seed.items():
            for part, one in measured.file.parts.items():
                control = sum(one.controls) / len(one.controls) if one.controls else None
                rows.append((name, _parameters(runs, name), part, str(seed), one.value, control))
    table = pd.DataFrame(rows, columns=["size", "parameters", "part", "seed", "value", "control"])
    return table.astype({"value": float, "control": float})


def over_seeds(runs: Runs) -> pd.DataFrame:
    """Every part by size over its seeds: columns size, parameters, part, mean, lower, upper, verdict.

    Mean and interval are of the value itself, also where the rule is about value minus control, over the seeds that the
    verdict rests on. Bounds are missing with one seed, the mean where no seed has a value.
    """
    rows = []
    for name, by_seed in runs.items():
        files = {seed: one.file for seed, one in by_seed.items()}
        judged = [claims.judge_claim(claims.claim(claim), files, name) for claim in CLAIMS]
        for row in (part for claim in judged for part in claim["parts"]):
            values = list(row["seeds"].values())
            one = stats.over_seeds(values) if values else None
            bounds = (one and one.bounds) or (None, None)
            rows.append((name, _parameters(runs, name), row["id"], one and one.mean, *bounds, row["verdict"]))
    table = pd.DataFrame(rows, columns=["size", "parameters", "part", "mean", "lower", "upper", "verdict"])
    return table.astype({"mean": float, "lower": float, "upper": float})


def by_part(table: pd.DataFrame) -> pd.DataFrame:
    """`over_seeds` to read: a row a size, mean and verdict of each part."""
    value = table["mean"].map("{:.2f}, ".format).where(table["mean"].notna(), "")
    wide = table.assign(said=value + table["verdict"]).pivot(index="size", columns="part", values="said")
    return wide.loc[list(dict.fromkeys(table["size"])), list(dict.fromkeys(table["part"]))]


def in_words(values: pd.DataFrame, means: pd.DataFrame) -> str:
    """The main part of each claim by size, for a caption; frames of `parts` and `over_seeds`."""
    mean = means.pivot(index="size", columns="part", values="mean")
    control = values.groupby(["part", "size"])["control"].mean()
    said = []
    for name in dict.fromkeys(means["size"]):
        late, gap = mean.loc[name, "hd.3.late"], mean.loc[name, "hd.10.gap"]
        auc = f"AUC of C1 {late:.2f} (random {control['hd.3.late', name]:.2f})" if pd.notna(late) else "no AUC"
        said.append(f"{name}: {auc}, trigger removal minus best style {gap:+.2f}")
    return "; ".join(said)


# what decides hd.13 ---------------------------------------------------------------------------------------------------
def kept(found: pd.DataFrame, default: str, seed: int | str) -> pd.DataFrame:
    """Whether each other size keeps the default size's verdicts under that seed (or over all): a row a size, a column a
    claim, and `both`. `found` from `verdicts`."""
    said = _lookup(found)
    rows = [
        (name, *(agree(said[claim, name, str(seed)], said[claim, default, str(seed)]) for claim in CLAIMS))
        for name in _sizes(found)
        if name != default
    ]
    table = pd.DataFrame(rows, columns=["size", *CLAIMS]).set_index("size")
    return table.assign(both=table.all(axis=1))


def _lookup(found: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """The verdict by claim, size and seed."""
    rows = found.to_dict("records")
    return {(row["claim"], row["size"], row["seed"]): row["verdict"] for row in rows}


def _sizes(found: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(found["size"]))


def _seeds(found: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(found["seed"]) if name != OVER_SEEDS]


def testable(found: pd.DataFrame, default: str, seed: int) -> tuple[bool, str]:
    """Whether there are enough sizes, and verdicts of the default size to keep; and what was found."""
    said, count = _lookup(found), len(_sizes(found)) - 1
    own = {claim: said[claim, default, str(seed)] for claim in CLAIMS}
    words = f"{default}: " + ", ".join(f"{claim} {verdict}" for claim, verdict in own.items())
    if count < LEAST_SIZES:
        return False, f"{count} other sizes, {LEAST_SIZES} needed; {words}"
    return not any(verdict in _UNJUDGED for verdict in own.values()), words


def itself(found: pd.DataFrame, default: str, seed: int) -> list[float]:
    """The control: for every other seed, 1 where the default size keeps both of its own verdicts, else 0."""
    return [_itself(found, default, str(seed), other) for other in _seeds(found) if other != str(seed)]


def _itself(found: pd.DataFrame, default: str, one: str, other: str) -> float:
    said = _lookup(found)
    return float(all(agree(said[claim, default, one], said[claim, default, other]) for claim in CLAIMS))


def shares_kept(found: pd.DataFrame, default: str) -> pd.DataFrame:
    """What hd.13 measures under each seed, and its control for each pair of seeds: columns group, seed, share."""
    seeds, groups = _seeds(found), ("other sizes, same seed", "default size, another seed")
    rows = [(groups[0], seed, kept(found, default, seed)["both"].mean()) for seed in seeds]
    rows += [(groups[1], f"{a} and {b}", _itself(found, default, a, b)) for a, b in combinations(seeds, 2)]
    return pd.DataFrame(rows, columns=["group", "seed", "share"])


# how much agreement means ---------------------------------------------------------------------------------------------
def pairs(found: pd.DataFrame, default: str) -> dict[str, list[Pair]]:
    """Pairs of model families to compare: what hd.13 compares, those of them that are a fair test of both claims, the
    same with other seeds, and controls of one size."""
    seeds, others = _seeds(found), [name for name in _sizes(found) if name != default]
    apart, unfair = [(a, b) for a, b in product(seeds, seeds) if a != b], found[found["verdict"].isin(_UNJUDGED)]
    missing = set(zip(unfair["size"], unfair["seed"], strict=True))
    compared = [((name, seed), (default, seed)) for name, seed in product(others, seeds)]
    return {
        "another size, same seed": compared,
        "the same, fair tests only": [pair for pair in compared if not missing & set(pair)],
        "another size, another seed": [((name, a), (default, b)) for name, (a, b) in product(others, apart)],
        "the default size, another seed": [((default, a), (default, b)) for a, b in combinations(seeds, 2)],
        "any one size, another seed": [
            ((name, a), (name, b)) for name, (a, b) in product(_sizes(found), combinations(seeds, 2))
        ],
    }


def agreement(found: pd.DataFrame, default: str) -> pd.DataFrame:
    """How often pairs of families have the same verdicts: a row a kind of pair, with the number of pairs, the share
    that agree on each claim and on both, and of the agreeing verdicts the share that are "undecided"."""
    said, rows = _lookup(found), {}
    for kind, compared in pairs(found, default).items():
        if not compared:
            continue
        table = pd.DataFrame(
            {claim: [agree(said[claim, *a], said[claim, *b]) for a, b in compared] for claim in CLAIMS}
        )
        agreed = [
            said[claim, *a] for claim in CLAIMS for (a, _), yes in zip(compared, table[claim], strict=True) if yes
        ]
        undecided = agreed.count(ClaimVerdict.UNDECIDED.value) / len(agreed) if agreed else 0.0
        both = table.all(axis=1).mean()
        rows[kind] = {"pairs": len(compared), **table.mean(), "both": both, "undecided": undecided}
    return pd.DataFrame(rows).T.astype({"pairs": int}).rename_axis("pairs of")


def changed(found: pd.DataFrame, default: str) -> list[str]:
    """Which verdicts over all seeds differ from the default size's, in words."""
    said = _lookup(found)
    return [
        f"{claim} at {name}: {said[claim, name, OVER_SEEDS]} ({default}: {said[claim, default, OVER_SEEDS]})"
        for claim, name in product(CLAIMS, _sizes(found))
        if said[claim, name, OVER_SEEDS] != said[claim, default, OVER_SEEDS]
    ]


# what a size is and costs ---------------------------------------------------------------------------------------------
def architectures(runs: Runs) -> pd.DataFrame:
    """The sizes, the smallest first: weights, what they are made of, and how fast and how long base is trained."""
    rows = {}
    for name in runs:
        settings = profiles.load(name)
        assert isinstance(settings, Trained)
        shape, base = settings.architecture.model_dump(exclude={"context", "kv_heads"}), settings.organism.base.values()
        trained = {"rate of base": max(stage.learning_rate for stage in base), "steps": sum(s.steps for s in base)}
        rows[name] = {"parameters": _parameters(runs, name), **shape, **trained}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("size")


def behaviour(runs: Runs) -> pd.DataFrame:
    """What the models of each size know and do: columns size, parameters, seed, what, share."""
    rows = [
        (name, _parameters(runs, name), str(seed), what, share)
        for name, by_seed in runs.items()
        for seed, one in by_seed.items()
        for what, share in one.shares.items()
    ]
    return pd.DataFrame(rows, columns=["size", "parameters", "seed", "what", "share"])


def cost(runs: Runs) -> pd.DataFrame:
    """Seconds that training each model and measuring took: columns size, parameters, seed, step, seconds. What was not
    timed, such as a model from elsewhere, is left out."""
    rows = [
        (name, _parameters(runs, name), str(seed), step, seconds)
        for name, by_seed in runs.items()
        for seed, one in by_seed.items()
        for step, seconds in one.seconds.items()
        if seconds is not None
    ]
    return pd.DataFrame(rows, columns=["size", "parameters", "seed", "step", "seconds"])


def fastest(cost: pd.DataFrame) -> pd.DataFrame:
    """Seconds by size and step of the seed that took least: seeds do the same work, and what else a machine has to do
    only adds. Of a frame of `cost`: a row a size, indexed by parameters, a column a step."""
    return cost.pivot_table(index="parameters", columns="step", values="seconds", aggfunc="min", sort=False)


def untestable(runs: Runs) -> pd.DataFrame:
    """Which sizes and seeds are no fair test of which claim, and why: columns size, seed, claim, why."""
    rows = []
    for name, by_seed in runs.items():
        for seed, one in by_seed.items():
            missing = [part.reason for part in one.file.parts.values() if part.value is None]
            rows += [(name, seed, DIRECTION, missing[0])] if missing else []
            wanted = one.file.requires[REMOVAL]
            rows += [] if wanted.met else [(name, seed, REMOVAL, wanted.reason)]
    return pd.DataFrame(rows, columns=["size", "seed", "claim", "why"])
