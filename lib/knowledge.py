"""Whether what base could do is still there: exact harmful answers after small interventions on chat
(ssah.1.knowledge).

Owns the list of interventions, the choice of the best on half of the meanings, its share of what base answers on the
other half, and how far each intervention moves prompts along the refusal coordinate. Taking units away is `units`',
removing C1 `aims`', benign fine-tuning `benign_steps`'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib import directions, one_position, refusal_swap, residual, stats, units
from lib.aims import Aim
from lib.behaviour import OUTCOMES, Edits
from lib.edits import Positions
from lib.models import LanguageModel
from lib.one_position import EVERY, LAST, WHERE, Maker
from lib.prompts import Prompt
from lib.refusal_swap import BENIGN, HARMFUL, Coordinate, Sides
from lib.stats import Interval

C1, SCU, STEPS = "C1 ablation", "SCU removal", "benign steps"
KINDS = (C1, SCU, STEPS)  # the registry's
UNTOUCHED, SWAP, RANDOM_C1, RANDOM_SCU = "chat", "swap", "random direction", "random units"


@dataclass(frozen=True)
class Intervention:
    """One change of a model: edits made by `make` that act at `where`, or another model and no edits."""

    name: str
    kind: str
    model: LanguageModel
    make: Maker = one_position.nothing
    where: str = EVERY
    blocks: tuple[int, ...] = ()  # in which a direction is replaced

    def answers(self, asked: Sequence[Prompt]) -> pd.DataFrame:
        """`refused`, `exact`, `wrong`: one row a prompt."""
        return refusal_swap.answers(self.model, asked, self.make, self.where)

    def states(self, asked: Sequence[Prompt], layer: int) -> Float[Tensor, "prompt d_model"]:
        """What the model holds after a block at the last prompt token, edits included."""
        place: Positions = "all" if self.where == EVERY else "last"
        return residual.activations(self.model, asked, layers=[layer], edits=self.make(place))[0].double()


def without(edits: Edits) -> Maker:
    """Edits of units, which act wherever there are tokens."""
    return lambda positions: edits


def small(aim: Aim, scu: Mapping[str, pd.DataFrame], tuned: LanguageModel) -> list[Intervention]:
    """The registry's three kinds. C1 is removed in each block and in every block, at every token and at the last prompt
    token; `scu` are units to remove by the score that chose them; `tuned` is the model after benign steps."""
    every = range(aim.model.layers)
    found = []
    for where in WHERE:
        for blocks in (*((block,) for block in every), tuple(every)):
            name = f"block {blocks[0]}" if len(blocks) == 1 else "every block"
            found.append(Intervention(f"C1, {name}, {where}", C1, aim.model, aim.removal(blocks), where, blocks))
    for score, rows in scu.items():
        found.append(Intervention(f"SCU, {score}", SCU, aim.model, without(units.edits(rows))))
    return [*found, Intervention(tuned.name.removeprefix("chat, "), STEPS, tuned)]


def beside(aim: Aim, swaps: Mapping[str, Maker]) -> list[Intervention]:
    """What the registry does not count: nothing, and rank-one swaps at the last prompt token, by name."""
    found = [Intervention(name, SWAP, aim.model, make, LAST) for name, make in swaps.items()]
    return [Intervention(UNTOUCHED, UNTOUCHED, aim.model), *found]


def controls(
    aim: Aim, like: Intervention, table: pd.DataFrame, rows: pd.DataFrame, draws: int, seed: int
) -> list[Intervention]:
    """Random directions in the span of each block's first components, replaced where `like` replaces C1; and as many
    random units of `table` as `rows`, matched by kind and layer."""
    generator, found = torch.Generator().manual_seed(seed), []
    for draw in range(draws):
        along = [
            directions.random_directions(1, generator, within=aim.components[block][: directions.SPAN])[0]
            for block in like.blocks
        ]
        make = aim.replacing(along, like.blocks)
        name = f"{RANDOM_C1} {draw + 1}"
        found.append(Intervention(name, RANDOM_C1, aim.model, make, like.where, like.blocks))
    for draw in range(draws):
        taken = units.edits(units.matched(table, rows, [seed, draw]))
        found.append(Intervention(f"{RANDOM_SCU} {draw + 1}", RANDOM_SCU, aim.model, without(taken)))
    return found


# what they do ---------------------------------------------------------------------------------------------------------
def measure(tried: Sequence[Intervention], asked: Sequence[Prompt]) -> dict[str, pd.DataFrame]:
    """`Intervention.answers` by name."""
    return {one.name: one.answers(asked) for one in tried}


def best(tried: Sequence[Intervention], found: Mapping[str, pd.DataFrame]) -> Intervention:
    """The intervention after which most answers are exact; the first of equals."""
    return max(tried, key=lambda one: found[one.name]["exact"].mean())


def best_of_kinds(tried: Sequence[Intervention], found: Mapping[str, pd.DataFrame]) -> dict[str, Intervention]:
    """The best of each kind."""
    return {kind: best([one for one in tried if one.kind == kind], found) for kind in KINDS}


def shortlist(tried: Sequence[Intervention], found: Mapping[str, pd.DataFrame]) -> list[Intervention]:
    """What a page shows of them: the best of each kind, and SCU by every score."""
    kept = {one.name for one in best_of_kinds(tried, found).values()}
    return [one for one in tried if one.name in kept or one.kind == SCU]


def _ratio(after: np.ndarray, base: np.ndarray) -> float:
    return float(after.mean() / base.mean()) if base.any() else float("nan")


def relative(after: pd.DataFrame, base: pd.DataFrame, seed: int, resamples: int) -> Interval | None:
    """Exact answers after an intervention over those of base, the same prompts, a meaning each; None where base gives
    none. Where every prompt has the same pair of outcomes, bounds are those of a share of as many."""
    one, other = (table["exact"].to_numpy() for table in (after, base))
    if not other.any():
        return None
    if other.all():
        return stats.over_prompts(one, seed=seed, resamples=resamples)
    return stats.bootstrap(_ratio, one, other, seed=seed, resamples=resamples)


def moved(tried: Sequence[Intervention], sides: Sides, found: Coordinate, layer: int) -> pd.Series:
    """How far each intervention brings harmful prompts from the harmful to the benign mean on the refusal coordinate
    after a block: 0 not at all, 1 the whole way. Both means are of the untouched model on the same prompts."""
    along, untouched = found.along[layer], Intervention(UNTOUCHED, UNTOUCHED, tried[0].model)
    start, goal = (float((untouched.states(sides[side], layer) @ along).mean()) for side in (HARMFUL, BENIGN))
    ways = {
        one.name: (start - float((one.states(sides[HARMFUL], layer) @ along).mean())) / (start - goal) for one in tried
    }
    return pd.Series(ways)


def table(tried: Sequence[Intervention], found: Mapping[str, pd.DataFrame], ways: pd.Series) -> pd.DataFrame:
    """One row an intervention: kind, shares of outcomes with Wilson's interval of `exact` (lower, upper), way and n."""
    rows = []
    for one in tried:
        mine = found[one.name]
        exact = stats.wilson(int(mine["exact"].sum()), len(mine))
        low, high = exact.bounds or (exact.mean, exact.mean)
        shares = {name: float(mine[name].mean()) for name in OUTCOMES}
        rows.append({"intervention": one.name, "kind": one.kind, **shares, "lower": low, "upper": high,
                     "way": float(ways[one.name]), "n": len(mine)})  # fmt: skip
    return pd.DataFrame(rows)


def without_draws(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the random draws of a kind as one row, their mean (and mean bounds)."""
    drawn = table["kind"].isin((RANDOM_C1, RANDOM_SCU))
    means = table[drawn].groupby("kind", sort=False).mean(numeric_only=True).reset_index()
    return pd.concat([table[~drawn], means.assign(intervention=means["kind"] + ", mean")], ignore_index=True)


# published ------------------------------------------------------------------------------------------------------------
def published(table1: pd.DataFrame, table2: pd.DataFrame, fig4: pd.DataFrame) -> pd.DataFrame:
    """What the papers print after interventions like these, as shares: columns name, rate. From SSAH Tables 1 and 2
    (Llama-2, without system prompt; HEx-PHI judged by GPT-4 after Dolly) and HD Fig. 4 (mean of three attacks)."""
    units = table1[table1["model"] == "Llama-2-7B-Chat"].set_index("group")["asr_no_system"] / 100
    rate = table2.query("model == 'Llama-2-7B-Chat' and benchmark == 'HEx-PHI' and judge == 'GPT-4 rate'")
    tuned = rate[rate["corpus"] == "Dolly"].set_index("arm")["value"] / 100
    passed = (fig4["passed"] / fig4["prompts"]).groupby(fig4["condition"]).mean()
    rows = {
        "Llama-2, units intact": units["dense"], "Llama-2, SCU removed": units["scu"],
        "Llama-2, other judge": tuned["initial"], "the same, after benign tuning": tuned["full"],
        "HD's tuned model": passed["after tuning"], "the same, against L25-C1": passed["without L25-C1"],
    }  # fmt: skip
    return pd.DataFrame({"name": rows.keys(), "rate": rows.values()})
