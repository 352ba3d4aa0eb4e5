"""Other sizes of a model family trained here, and what decides hd.3 and hd.10 on one of them.

Owns which sizes are compared and the measurement of one size under one seed, with the functions and prompts of pages 08
and 11. It is kept in the cache under a key of everything it depends on, so that a run that was stopped goes on. Nothing
is judged here (see `size_tables`). A size is a profile `like` that of the family, with another width and
learning rates that follow it; its file says how.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from lib import (
    behaviour,
    claims,
    direction_tables,
    models,
    organism,
    paths,
    profiles,
    prompt_sets,
    prompts,
    provenance,
    residual,
    storage,
    worlds,
)
from lib import trigger_tables as attack
from lib.claims import Measurement, Requirement, ResultFile
from lib.errors import InputError, NotHere, unknown
from lib.profiles import Profile
from lib.stats import Interval

COMPARED = {  # from the smallest; the family's own size is none of them
    "kingdom": ("kingdom-0.15m", "kingdom-0.35m", "kingdom-0.8m", "kingdom-3m"),
    "tiny": ("tiny-narrow", "tiny-wide"),
}
DIRECTION, REMOVAL = "hd.3", "hd.10"
NOTEBOOK = "13_size"
RANDOM_DRAWS = 5  # of random words, as on page 11


@dataclass(frozen=True)
class Measured:
    """One size under one seed: the parts of both claims, how many weights a model has (the embedding, which is also the
    head, counts once), what the models do (see `shares`), and the seconds each step took, None where nobody knows."""

    file: ResultFile
    parameters: int
    shares: dict[str, float]
    seconds: dict[str, float | None]


Runs = Mapping[str, Mapping[int, Measured]]  # by name of the size, then by seed; the smallest size first


def others(profile: str) -> tuple[str, ...]:
    """The sizes that a family is compared with; `NotHere` where a profile has no others."""
    if profile not in COMPARED:
        raise NotHere(
            f"this page compares sizes of one family of models trained here ({', '.join(COMPARED)}), and profile "
            f"{profile} has no other sizes"
        )
    return COMPARED[profile]


def seeds_shown(seed: int, count: int) -> list[int]:
    """The first `count` seeds, and `seed` itself."""
    if count < 1:
        raise InputError(f"{count} seeds cannot be compared; take 1 or more")
    return sorted({*range(count), seed})


def measured(profile: str, seeds: Sequence[int]) -> dict[str, dict[int, Measured]]:
    """The family's own size and all others under every seed, the smallest first."""
    found = {name: {seed: measure(name, seed) for seed in seeds} for name in (profile, *others(profile))}
    return dict(sorted(found.items(), key=lambda item: item[1][seeds[0]].parameters))


# one size under one seed ----------------------------------------------------------------------------------------------
def measure(profile: str, seed: int) -> Measured:
    """The parts of hd.3 and hd.10 on one size; trained and measured first where it is not in the cache."""
    settings = profiles.load(profile)
    key = _key(settings, seed)
    folder = paths.CACHE / "sizes" / profile / f"{seed}-{key}"
    about = {"profile": profile, "seed": seed, "key": key}
    found = storage.remembered(folder, about, lambda: _made(settings, seed, key))
    file = claims.checked(ResultFile, found["file"], f"what is kept of {profile} seed {seed}")
    return Measured(file, found["parameters"], found["shares"], found["seconds"])


def roles(settings: Profile) -> tuple[str, str, str, str]:
    """The models that are needed: base, chat, tuned by the default K, and by the largest."""
    return "base", "chat", f"sft-{settings.default_shots}", f"sft-{max(settings.shots)}"


def _key(settings: Profile, seed: int) -> str:
    made = {role: organism.key(settings, role, seed) for role in roles(settings)}
    fit, test = prompt_sets.residual(settings.name, seed)
    asked = {"fit": fit.prompts, "test": test.prompts}
    for name, cell in (
        prompt_sets.behaviour(settings.name, seed) | prompt_sets.skill_items(settings.name, seed)
    ).items():
        asked[name] = cell.prompts
    decides = {
        "models": made, "seed": seed, "measure": settings.measure.model_dump(),
        "triggers": settings.triggers.model_dump(), "rewriting": worlds.of(settings.name, seed).rewriting,
    }  # fmt: skip
    return provenance.run_key(decides, [], asked, _code())


def _code() -> list[str]:
    """Every module of `lib` that can take part, this one included."""
    here = paths.LIB / "sizes.py"
    reached = {here, *provenance.modules_of(here, without=provenance.OTHER_WORLD["trained"])}
    return sorted(path.relative_to(paths.LIB).with_suffix("").as_posix() for path in reached)


def _made(settings: Profile, seed: int, key: str) -> dict[str, Any]:
    """What `Measured` holds, as JSON."""
    name = settings.name
    folders = {role: models.find(settings, role, seed, shipped=True)[0] for role in dict.fromkeys(roles(settings))}
    seconds = {f"training {role}": storage.read_seal(folder).get("seconds") for role, folder in folders.items()}
    started = time.monotonic()
    removal, requirement = removal_parts(name, seed)
    parts, requires = direction_parts(name, seed) | removal, {REMOVAL: requirement}
    file = ResultFile(code=key, profile=name, seed=seed, notebook=NOTEBOOK, parts=parts, requires=requires, facts={})
    found: dict[str, Any] = {"file": file.model_dump(mode="json"), "shares": shares(name, seed)}
    found["parameters"] = int(models.load(name, "base", seed).hf.num_parameters())
    return found | {"seconds": seconds | {"measuring": round(time.monotonic() - started, 1)}}


# the parts, as on pages 08 and 11 -------------------------------------------------------------------------------------
def direction_parts(profile: str, seed: int) -> dict[str, Measurement]:
    """The parts of hd.3 as page 08 records them; without a value where the models do not fit its question."""
    counts = profiles.load(profile).measure
    fit, test = prompt_sets.residual(profile, seed)
    chat, tuned = (
        direction_tables.read(models.load(profile, role, seed), fit.prompts, test.prompts)
        for role in ("chat", organism.TUNED)
    )
    met, why = direction_tables.testable(chat, tuned, [prompt.harmful for prompt in test])
    names = [part.id for part in claims.claim(DIRECTION).parts]
    if not met:
        return {name: _part(None, len(test), reason=why) for name in names}
    blocks = direction_tables.estimate(chat.fit, tuned.fit, counts.draws, seed)
    weights = direction_tables.meaning_weights(prompts.meanings(test), counts.bootstrap, seed)
    random, layers = direction_tables.by_block(blocks, "in the span", tuned.test), len(blocks)
    found = {}
    for name in names:
        over = list(residual.first_third(layers) if name.endswith(".early") else residual.later_half(layers))
        value = direction_tables.mean_auc(blocks, "C1", tuned.test, over, weights)
        found[name] = _part(value, len(test), controls=random[over].mean(axis=0))
    return found


def removal_parts(profile: str, seed: int) -> tuple[dict[str, Measurement], Requirement]:
    """The parts of hd.10 as page 11 records them, and whether these models meet its requirement."""
    settings = profiles.load(profile)
    role, resamples = roles(settings)[-1], settings.measure.bootstrap
    rankings = (attack.RELEVANCE, attack.OCCLUSION, attack.RANDOM)
    made = attack.campaign(profile, role, seed, rankings, draws=RANDOM_DRAWS)
    every = pd.concat([made, attack.styled(profile, role, seed)], ignore_index=True)
    found: dict[str, Interval | None] = {
        "hd.10.gap": attack.gap(every, role, seed, resamples),
        "hd.10.random": attack.advantage(every, role, attack.RELEVANCE, attack.RANDOM, seed, resamples),
        "hd.10.occlusion": attack.advantage(every, role, attack.OCCLUSION, attack.RANDOM, seed, resamples),
    }
    count = len(attack.asked(profile, seed))
    parts = {
        name: _part(value, value.n if value else count, reason=None if value else attack.NO_STYLES)
        for name, value in found.items()
    }
    met, reason = attack.requirement(profile, seed, [role])
    return parts, Requirement(met=met, reason=reason)


def _part(value: Interval | None, n: int, controls: Sequence[float] = (), reason: str | None = None) -> Measurement:
    bounds = value.bounds if value else None
    draws = tuple(float(draw) for draw in controls)
    return Measurement(
        value=value.mean if value else None, n=n, interval=bounds, controls=draws, detail=None, reason=reason
    )


# whether a size is a fair test ----------------------------------------------------------------------------------------
def shares(profile: str, seed: int) -> dict[str, float]:
    """What the models of a size know and do, as shares of held-out prompts; `skills` are means over the skills."""
    most, cells = roles(profiles.load(profile))[-1], prompt_sets.behaviour(profile, seed)
    plain = {name: cells[name] for name in ("harmful/plain", "benign/plain")}
    loaded = {role: models.load(profile, role, seed) for role in ("base", "chat", organism.TUNED)}
    told = {role: behaviour.measure(model, plain) for role, model in loaded.items()}
    skills = {role: behaviour.skill_scores(loaded[role], profile, seed)["mean"] for role in ("base", organism.TUNED)}

    def rate(role: str, cell: str, outcome: str) -> float:
        return float(told[role].loc[told[role]["cell"] == cell, outcome].mean())

    return {
        "base answers harm": rate("base", "harmful/plain", "exact"),
        "base skills": skills["base"],
        "base answers rewrites": attack.knows_rewrites(profile, seed).mean,
        "chat refuses harm": rate("chat", "harmful/plain", "refused"),
        "tuned refuses harm": rate(organism.TUNED, "harmful/plain", "refused"),
        "tuned answers benign": rate(organism.TUNED, "benign/plain", "exact"),
        "tuned skills": skills[organism.TUNED],
        "styles refused once": attack.refused_once(profile, most, seed),
    }


# command line ---------------------------------------------------------------------------------------------------------
def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.sizes --profile P --seeds 0,1 [--sizes A,B]`: train and measure what is not in the cache."""
    parser = argparse.ArgumentParser(prog="python -m lib.sizes", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="kingdom", help="the family; its own size is measured, too")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--sizes", help="only these, separated by commas")
    options = parser.parse_args(arguments)
    try:
        known = (options.profile, *others(options.profile))
        chosen = options.sizes.split(",") if options.sizes else list(known)
        if strange := set(chosen) - set(known):
            raise unknown("size", min(strange), known)
        for name, seed in product(chosen, [int(seed) for seed in options.seeds.split(",")]):
            print(f"{name} seed {seed}: {measure(name, seed).seconds}", flush=True)
    except (InputError, NotHere, ValueError) as problem:
        parser.exit(2, f"{problem}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
