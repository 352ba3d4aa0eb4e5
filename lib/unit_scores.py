"""How much each unit matters on a set of examples: raw scores, streamed, so that memory does not grow with the set.

Owns reading activations and gradients and what is accumulated from them (float64; sums as large as the weights are
float32, or as wide as wider weights, and leave the model's device when they are finished); when memory runs out,
batches get smaller. It compares no
two sets beyond putting them side by side, normalises nothing and forms no groups: see `units`.

    variance, second_moment   of a unit's values, times the squared norm of its writing column (SSAH eq. 1; Wanda), as
                              the residual stream receives it: see `families.output_gain`
    flap                      FLAP's running fluctuation, which weighs sequences and sums over tokens, times the same
    snip                      |weight x gradient of the answer's loss|, over the unit's weights; examples add up
    taylor                    |mean of value x gradient| of the logit of refusing against that of complying
    taylor_signed             the same with its sign: above 0, the unit pushes towards refusal
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib import batches, behaviour, families, prompts, tracing
from lib.batches import Found
from lib.errors import InputError, NotHere, unknown
from lib.families import UNIT_SITES
from lib.margins import margins
from lib.models import LanguageModel
from lib.prompts import Example
from lib.threads import one_thread
from lib.tracing import Place

POSITIONS = ("all", "response", "first")  # every token; the answer's tokens; the token that predicts the answer's first
RULES: tuple[tuple[str, str], ...] = (
    *((score, position) for score in ("variance", "second_moment", "flap") for position in POSITIONS),
    ("snip", "response"), ("taylor", "first"), ("taylor_signed", "first"),
)  # fmt: skip
PAPER = ("variance", "all")
_SMALL_MODEL = 50e6  # weights of units; below, one example is too little work for several threads
_POOL = 64  # calibration tokens whose values `edits.resample` can put in a unit's place
Rule = tuple[str, str]  # (score, position)
Values = Float[np.ndarray, "unit"]  # in the order of `table`


@dataclass(frozen=True)
class Calibration:
    """Raw scores of one model on a safety and a utility set.

    `raw[rule]` is a table of units with columns kind, layer, index, safety (I_S), utility (I_U) and mean, the unit's
    mean value over the tokens of the utility set. `pool` holds values at tokens of that set, one token a sequence.
    """

    raw: dict[Rule, pd.DataFrame]
    pool: dict[Place, Float[Tensor, "row unit"]]


def table(model: LanguageModel) -> pd.DataFrame:
    """Every unit of a model, one row each: kind, layer, index. The order of all that is computed here."""
    widths = {(kind, layer): len(families.unit_slices(model.hf, kind, layer)[-1][2]) for kind, layer in cells(model)}
    rows = [(kind, layer, index) for (kind, layer), width in widths.items() for index in range(width)]
    return pd.DataFrame(rows, columns=["kind", "layer", "index"])


def cells(model: LanguageModel) -> list[tuple[str, int]]:
    """(kind, layer) in order."""
    return [(kind, layer) for layer in range(model.layers) for kind in UNIT_SITES]


def calibrate(
    model: LanguageModel,
    sets: Mapping[str, Sequence[Example]],
    rules: Sequence[Rule] = RULES,
    batch: int = 32,
    seed: int = 0,
) -> Calibration:
    """Scores by every rule on `sets["safety"]` and `sets["utility"]`.

    `InputError` for sets that are too small, `NotHere` for a model whose weights are on a server.
    """
    for rule in rules:
        if rule not in RULES:
            raise unknown("rule (score, position)", rule, RULES)
    if next(model.hf.parameters()).is_meta:
        raise NotHere("this page scores units, which a remote profile cannot: its weights are on a server")
    found: dict[str, dict[Rule, Values]] = {}
    for name in ("safety", "utility"):
        examples = list(sets.get(name, ()))
        if len(examples) < 2:
            raise InputError(f"the {name} set has {len(examples)} examples; a variance needs at least two")
        values = activations(model, examples, batch, seed)
        found[name] = {
            rule: values.score(model, *rule) for rule in rules if rule[0] in ("variance", "second_moment", "flap")
        }
        if any(score == "snip" for score, _ in rules):
            found[name]["snip", "response"] = of_units(model, saliency(model, examples))
        if any(score.startswith("taylor") for score, _ in rules):
            signed = taylor(model, examples, batch)
            found[name] |= {("taylor", "first"): np.abs(signed), ("taylor_signed", "first"): signed}
    start = table(model).assign(mean=values.mean("all"))
    raw = {rule: start.assign(safety=found["safety"][rule], utility=found["utility"][rule]) for rule in rules}
    return Calibration(raw, values.pool)


# values of units ------------------------------------------------------------------------------------------------------
@dataclass
class _Sums:
    """Running sums over tokens of one place, a row for each of `POSITIONS`; `tokens` and `sequences` count."""

    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    mean: Tensor | float = 0.0  # of the sequences' means, so that each sequence weighs the same
    fluctuation: Tensor | float = 0.0
    tokens: Tensor | float = 0.0
    sequences: int = 0

    def add(self, values: Float[Tensor, "prompt token d"], chosen: Float[Tensor, "position prompt token"]) -> None:
        """One batch. The fluctuation follows FLAP's released code: both factors of the update use the *new* mean, so
        sequence k adds (k - 1) / k times its squared deviations from the mean over the first k."""
        wide = values.to(torch.float64, copy=True)  # and then in place: copies of all values are what this costs
        wide.masked_fill_(chosen[0][..., None] == 0, 0.0)  # pads may hold anything
        total = torch.einsum("ent,ntd->end", chosen, wide)  # position, prompt, d
        squares = torch.einsum("ent,ntd->end", chosen, wide.square_())
        tokens = chosen.sum(2)[..., None]
        number = self.sequences + torch.arange(1, len(values) + 1, dtype=torch.float64, device=wide.device)[:, None]
        means = (total / tokens).cumsum_(1).add_(self.mean * self.sequences).div_(number)  # after each sequence
        self.total, self.squares = self.total + total.sum(1), self.squares + squares.sum(1)
        self.mean, self.sequences = means[:, -1:].clone(), self.sequences + len(values)
        apart = means.mul(tokens).sub_(total, alpha=2).mul_(means).add_(squares).clamp_(min=0)
        self.fluctuation = self.fluctuation + apart.mul_((number - 1) / number).sum(1)
        self.tokens = self.tokens + tokens.sum(1)

    def of(self, what: str) -> Float[Tensor, "position d"]:
        """`mean` over tokens, or a score before it is multiplied by the column norm."""
        mean = torch.as_tensor(self.total / self.tokens)
        if what == "variance":
            return (self.squares - self.tokens * mean.square()).clamp(min=0) / (self.tokens - 1)
        if what == "flap":
            return torch.as_tensor(self.fluctuation / (self.sequences - 1))
        return mean if what == "mean" else torch.as_tensor(self.squares / self.tokens)


@dataclass
class Activations:
    """What one pass over a set leaves: sums for each place, and values at one random token of the first sequences."""

    sums: dict[Place, _Sums] = field(default_factory=dict)
    pool: dict[Place, Tensor] = field(default_factory=dict)

    def mean(self, position: str) -> Values:
        """Mean value of every unit over tokens."""
        return self._units({place: sums.of("mean") for place, sums in self.sums.items()}, position)

    def score(self, model: LanguageModel, what: str, position: str) -> Values:
        """A score of every unit: `what` of its values, times the squared norm of the column that writes it."""
        norms = _squared_norms(model)
        return self._units({place: sums.of(what) * norms[place] for place, sums in self.sums.items()}, position)

    def _units(self, found: Mapping[Place, Float[Tensor, "position d"]], position: str) -> Values:
        row = POSITIONS.index(position)
        return torch.cat([values[row].cpu() for values in found.values()]).numpy()


def _squared_norms(model: LanguageModel) -> dict[Place, Float[Tensor, "d"]]:
    found = {}
    for kind, layer in cells(model):
        name, dim, _ = families.unit_slices(model.hf, kind, layer)[-1]
        column = model.hf.get_parameter(name).detach().double() * families.output_gain(model.hf, kind, layer)[:, None]
        found[UNIT_SITES[kind], layer] = column.square().sum(1 - dim)
    return found


def _chosen(mask: Int[Tensor, "prompt token"], answers: Sequence[int]) -> Float[Tensor, "position prompt token"]:
    """1 where a token counts, for each of `POSITIONS`; `answers` are the answers' lengths in tokens."""
    place = torch.arange(mask.shape[1] - 1, -1, -1)  # tokens after this one
    lengths = torch.tensor(answers)[:, None]
    return torch.stack([mask.bool(), place < lengths, place == lengths]).double()


def _encoded(model: LanguageModel, examples: Sequence[Example]) -> tuple[list[list[int]], list[int]]:
    """Ids of prompts with their answers in the order given (FLAP depends on it), and the answers' lengths in tokens."""
    asked = [example.prompt for example in examples]
    before = prompts.prompt_ids(model.tokenizer, asked)
    after = prompts.answer_ids(model.tokenizer, asked, [example.answer for example in examples])
    if not all(after):
        raise InputError(f"example {[bool(row) for row in after].index(False)} has an empty answer; leave it out")
    return [a + b for a, b in zip(before, after, strict=True)], [len(row) for row in after]


def _drawn(lengths: Sequence[int], batch: int, seed: int) -> list[int]:
    """Which token of each of the first sequences joins the pool, counted from the sequence's end: 1 is the last."""
    generator, found = torch.Generator().manual_seed(seed), list[int]()
    for rows in batches.in_order(min(len(lengths), _POOL), batch):
        rows = list(range(rows[0], min(rows[0] + batch, len(lengths))))  # the whole batch draws, also beyond the pool
        width = max(lengths[row] for row in rows)
        real = torch.tensor([[0.0] * (width - lengths[row]) + [1.0] * lengths[row] for row in rows]).double()
        found += (width - torch.multinomial(real, 1, generator=generator)[:, 0]).tolist()
    return found[:_POOL]


def activations(model: LanguageModel, examples: Sequence[Example], batch: int = 32, seed: int = 0) -> Activations:
    """One pass over prompts and answers, reading every unit. `seed` draws the tokens of the pool."""
    places = [(UNIT_SITES[kind], layer) for kind, layer in cells(model)]
    ids, answers = _encoded(model, examples)
    lengths = [len(row) for row in ids]
    drawn = _drawn(lengths, batch, seed)
    found = Activations({place: _Sums() for place in places})
    kept: dict[Place, list[Tensor]] = {place: [] for place in places}

    def add(rows: list[int]) -> tuple[dict[Place, _Sums], dict[Place, Tensor]]:
        """The sums with these rows added, and their values for the pool; `found` stays as it was."""
        encoding = prompts.pad_left([ids[row] for row in rows], model.tokenizer.pad_token_id)
        chosen = _chosen(encoding["attention_mask"], [answers[row] for row in rows])
        token = torch.tensor([chosen.shape[2] - drawn[row] for row in rows if row < len(drawn)], dtype=torch.long)
        sums, pool = {place: replace(sums) for place, sums in found.sums.items()}, {}
        with torch.inference_mode():
            for place, values in tracing.forward(model.traced, encoding, places).activations.items():
                sums[place].add(values, chosen.to(values.device))
                if len(token):  # tensors without rows, kept among large ones that go, would scatter the heap
                    pool[place] = values[torch.arange(len(token)), token].float().cpu()
        return sums, pool

    for _, (sums, pool) in batches.halving(batches.in_order(len(ids), batch), lengths, add):
        found.sums = sums
        for place, values in pool.items():
            kept[place].append(values.clone())  # out of inference mode: an ordinary tensor, free of its batch
    found.pool = {place: torch.cat(parts) for place, parts in kept.items()}
    return found


# gradients ------------------------------------------------------------------------------------------------------------
def _refuse_against_comply(logits: Tensor, openers: list[int], comply: Tensor) -> Tensor:
    return margins(logits.float(), openers, comply)


_Decide = Callable[[dict[str, Tensor], Callable[[Tensor], Tensor]], Found]


def _decisions(model: LanguageModel, examples: Sequence[Example], batch: int, work: _Decide[Found]) -> Iterator[Found]:
    """What `work` makes of each batch of left-padded prompts and the objective of their last logits: refusing, by any
    opener of a refusal, against complying, by the first token of the prompt's right answer (any that is no refusal,
    where no answer is right)."""
    openers = sorted(behaviour.refusal_openers(model), reverse=True)  # a fixed order: it decides the last bits
    asked = [example.prompt for example in examples]
    ids = prompts.prompt_ids(model.tokenizer, asked)
    right = behaviour.right_tokens(model, asked)
    lengths = [len(row) for row in ids]

    def one(rows: list[int]) -> Found:
        encoding = prompts.pad_left([ids[row] for row in rows], model.tokenizer.pad_token_id)
        return work(encoding, partial(_refuse_against_comply, openers=openers, comply=right[rows]))

    done = batches.halving(prompts.by_length(lengths, batch), lengths, one)
    return map(itemgetter(1), done)  # unlike a loop, holds on to nothing while the next batch is made


def taylor(model: LanguageModel, examples: Sequence[Example], batch: int = 32) -> Values:
    """Mean over prompts of value x gradient at the last prompt token, signed: what the logit of refusing against that
    of complying would lose to first order if the unit were 0.
    """
    places = [(UNIT_SITES[kind], layer) for kind, layer in cells(model)]
    total: dict[Place, Tensor | float] = dict.fromkeys(places, 0.0)

    def effects(encoding: dict[str, Tensor], objective: Callable[[Tensor], Tensor]) -> dict[Place, Tensor]:
        pairs = tracing.gradients(model.traced, encoding, places, objective)
        return {place: (x[:, -1].double() * slope[:, -1].double()).sum(0).cpu() for place, (x, slope) in pairs.items()}

    for found in _decisions(model, examples, batch, effects):
        for place, effect in found.items():
            total[place] = total[place] + effect
    return torch.cat([torch.as_tensor(total[place]) / len(examples) for place in places]).numpy()


def weight_names(model: LanguageModel) -> list[str]:
    """Every parameter that units own parts of."""
    slices = [families.unit_slices(model.hf, kind, layer) for kind, layer in cells(model)]
    return list(dict.fromkeys(name for found in slices for name, _, _ in found))


def _weights(model: LanguageModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every parameter that units own parts of, to differentiate at, and zeros to sum its gradients in.

    The weights share the model's memory, whose own parameters may stay frozen.
    """
    weights = {name: model.hf.get_parameter(name).detach().requires_grad_() for name in weight_names(model)}
    wide = {name: torch.promote_types(weight.dtype, torch.float32) for name, weight in weights.items()}
    return weights, {name: torch.zeros_like(weight, dtype=wide[name]) for name, weight in weights.items()}


def _run(model: LanguageModel, weights: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    """Logits of the model with these weights; unlike a trace, a plain call does not move its inputs to the model."""
    moved = {name: x.to(model.hf.device) if isinstance(x, Tensor) else x for name, x in options.items()}
    return torch.func.functional_call(model.hf, weights, kwargs={**moved, "use_cache": False}).logits


def weight_taylor(
    model: LanguageModel, examples: Sequence[Example], batch: int = 32
) -> dict[str, Float[Tensor, "..."]]:
    """`taylor` for single weights: weight x mean gradient of the same logit, signed, where units own a part. On the
    CPU, 4 bytes a weight: 25 GB for a model of 8B."""
    weights, sums = _weights(model)

    def slopes(encoding: dict[str, Tensor], objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            logits = _run(model, weights, {**encoding, "logits_to_keep": 1})[:, -1]
            return torch.autograd.grad(objective(logits).sum(), list(weights.values()))

    for found in _decisions(model, examples, batch, slopes):
        for name, slope in zip(weights, found, strict=True):
            sums[name] += slope
        del found, slope  # as large as the weights: gone before the next are made
    # One by one off the device, on which the sums of two sets would not fit.
    return {name: sums.pop(name).mul_(weight.detach()).div_(len(examples)).cpu() for name, weight in weights.items()}


def saliency(model: LanguageModel, examples: Sequence[Example]) -> dict[str, Float[Tensor, "..."]]:
    """|weight| x sum over examples of |gradient| of the answer's mean loss, for parameters that units own parts of.

    One example a backward pass, as in the released code of Wei et al. (2024), whose SNIP score this is: absolute values
    of a batch's gradient would cancel between examples. Parameters that were frozen stay so. On the CPU, as in
    `weight_taylor`.
    """
    weights, sums = _weights(model)
    ids, answers = _encoded(model, examples)

    def slopes(rows: list[int]) -> tuple[Tensor, ...]:
        whole, length = torch.tensor([ids[rows[0]]]), answers[rows[0]]
        with torch.enable_grad():
            logits = _run(model, weights, {"input_ids": whole, "logits_to_keep": length + 1})[0]
            loss = F.cross_entropy(logits[-length - 1 : -1], whole[0, -length:].to(logits.device))
            return torch.autograd.grad(loss, list(weights.values()))

    with one_thread(sum(weight.numel() for weight in weights.values()) < _SMALL_MODEL):
        lengths = [len(row) for row in ids]
        for _, found in batches.halving(batches.in_order(len(ids), 1), lengths, slopes):
            for name, slope in zip(weights, found, strict=True):
                sums[name] += slope.abs()
            del found, slope  # as large as the weights: gone before the next are made
    return {name: sums.pop(name).mul_(weight.detach().abs()).cpu() for name, weight in weights.items()}


def of_units(model: LanguageModel, per_weight: Mapping[str, Float[Tensor, "..."]]) -> Values:
    """A score of weights, summed over the weights that belong to each unit."""
    found = []
    for kind, layer in cells(model):
        parts = []
        for name, dim, index in families.unit_slices(model.hf, kind, layer):
            rows = per_weight[name].double().movedim(dim, 0)
            parts.append(rows.reshape(len(rows), -1).sum(1)[index])
        found.append(torch.stack(parts).sum(0))
    return torch.cat(found).cpu().numpy()
