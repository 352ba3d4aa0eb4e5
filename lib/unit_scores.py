"""How much each unit matters on a set of examples: raw scores, streamed, so that memory does not grow with the set.

Owns reading activations and gradients and what is accumulated from them (float64; sums as large as the weights are
float32). It compares no two sets beyond putting them side by side, normalises nothing and forms no groups: see `units`.

    variance, second_moment   of a unit's values, times the squared norm of its writing column (SSAH eq. 1; Wanda), as
                              the residual stream receives it: see `families.output_gain`
    flap                      FLAP's running fluctuation, which weighs sequences and sums over tokens, times the same
    snip                      |weight x gradient of the answer's loss|, over the unit's weights; examples add up
    taylor                    |mean of value x gradient| of the logit of refusing against that of complying
    taylor_signed             the same with its sign: above 0, the unit pushes towards refusal
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lib import families, prompts, tracing
from lib.errors import InputError, unknown
from lib.families import UNIT_SITES
from lib.kingdom import lexicon
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
    """Scores by every rule on `sets["safety"]` and `sets["utility"]`; `InputError` for sets that are too small."""
    for rule in rules:
        if rule not in RULES:
            raise unknown("rule (score, position)", rule, RULES)
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
        wide = values.double().masked_fill(chosen[0][..., None] == 0, 0.0)  # pads may hold anything
        total = torch.einsum("ent,ntd->end", chosen, wide)  # position, prompt, d
        squares = torch.einsum("ent,ntd->end", chosen, wide.square())
        tokens = chosen.sum(2)[..., None]
        number = self.sequences + torch.arange(1, len(values) + 1, dtype=torch.float64, device=wide.device)[:, None]
        means = ((total / tokens).cumsum(1) + self.mean * self.sequences) / number  # after each sequence
        apart = (squares - 2 * means * total + tokens * means.square()).clamp(min=0)
        self.fluctuation = self.fluctuation + (apart * (number - 1) / number).sum(1)
        self.mean, self.sequences = means[:, -1:], self.sequences + len(values)
        self.total, self.squares = self.total + total.sum(1), self.squares + squares.sum(1)
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


def _encoded(
    model: LanguageModel, examples: Sequence[Example], batch: int
) -> Iterator[tuple[dict[str, Tensor], list[int]]]:
    """Left-padded prompts with answers in the order given (FLAP depends on it), and the answers' lengths in tokens."""
    asked = [example.prompt for example in examples]
    before = prompts.prompt_ids(model.tokenizer, asked)
    after = prompts.answer_ids(model.tokenizer, asked, [example.answer for example in examples])
    if not all(after):
        raise InputError(f"example {[bool(row) for row in after].index(False)} has an empty answer; leave it out")
    whole = [a + b for a, b in zip(before, after, strict=True)]
    for start in range(0, len(whole), batch):
        part = slice(start, start + batch)
        yield prompts.pad_left(whole[part], model.tokenizer.pad_token_id), [len(row) for row in after[part]]


def activations(model: LanguageModel, examples: Sequence[Example], batch: int = 32, seed: int = 0) -> Activations:
    """One pass over prompts and answers, reading every unit. `seed` draws the tokens of the pool."""
    places = [(UNIT_SITES[kind], layer) for kind, layer in cells(model)]
    found = Activations({place: _Sums() for place in places})
    generator, rows = torch.Generator().manual_seed(seed), 0
    kept: dict[Place, list[Tensor]] = {place: [] for place in places}
    for encoding, answers in _encoded(model, examples, batch):
        read = tracing.forward(model.traced, encoding, places).activations
        chosen = _chosen(encoding["attention_mask"], answers)
        here = min(len(answers), _POOL - rows)
        token = torch.multinomial(chosen[0], 1, generator=generator)[:here, 0]
        for place, values in read.items():
            found.sums[place].add(values, chosen.to(values.device))
            kept[place].append(values[range(here), token].float().cpu())
        rows += here
    found.pool = {place: torch.cat(parts) for place, parts in kept.items()}
    return found


# gradients ------------------------------------------------------------------------------------------------------------
def _refuse_against_comply(logits: Tensor, openers: list[int], comply: Tensor) -> Tensor:
    return logits[:, openers].logsumexp(1) - logits.gather(1, comply.to(logits.device)[:, None])[:, 0]


def _word(model: LanguageModel, word: str) -> int:
    token = model.tokenizer.get_vocab().get(word)
    if token is None:
        raise InputError(f"{model.name} has no word {word!r}, with which refusals open; score it by another rule")
    return token


def _decisions(
    model: LanguageModel, examples: Sequence[Example], batch: int
) -> Iterator[tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]]:
    """Left-padded prompts, and the objective of their last logits: refusing, by any opener of a refusal, against
    complying, by the first token of the prompt's right answer."""
    openers = [_word(model, word) for word in lexicon.REFUSAL_OPENERS]
    asked = [example.prompt for example in examples]
    ids = prompts.prompt_ids(model.tokenizer, asked)
    right = prompts.answer_ids(model.tokenizer, asked, [prompt.answer for prompt in asked])
    for rows in prompts.by_length([len(row) for row in ids], batch):
        encoding = prompts.pad_left([ids[row] for row in rows], model.tokenizer.pad_token_id)
        comply = torch.tensor([right[row][0] for row in rows])
        yield encoding, partial(_refuse_against_comply, openers=openers, comply=comply)


def taylor(model: LanguageModel, examples: Sequence[Example], batch: int = 32) -> Values:
    """Mean over prompts of value x gradient at the last prompt token, signed: what the logit of refusing against that
    of complying would lose to first order if the unit were 0.
    """
    places = [(UNIT_SITES[kind], layer) for kind, layer in cells(model)]
    total: dict[Place, Tensor | float] = dict.fromkeys(places, 0.0)
    for encoding, objective in _decisions(model, examples, batch):
        for place, (value, slope) in tracing.gradients(model.traced, encoding, places, objective).items():
            total[place] = total[place] + (value[:, -1].double() * slope[:, -1].double()).sum(0).cpu()
    return torch.cat([torch.as_tensor(total[place]) / len(examples) for place in places]).numpy()


def _weights(model: LanguageModel) -> dict[str, Tensor]:
    """Copies, to differentiate at, of every parameter that units own parts of. The model's own may stay frozen."""
    slices = [families.unit_slices(model.hf, kind, layer) for kind, layer in cells(model)]
    names = dict.fromkeys(name for found in slices for name, _, _ in found)
    return {name: model.hf.get_parameter(name).detach().clone().requires_grad_() for name in names}


def weight_taylor(
    model: LanguageModel, examples: Sequence[Example], batch: int = 32
) -> dict[str, Float[Tensor, "..."]]:
    """`taylor` for single weights: weight x mean gradient of the same logit, signed, where units own a part."""
    weights = _weights(model)
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for encoding, objective in _decisions(model, examples, batch):
        with torch.enable_grad():
            options = {**encoding, "use_cache": False, "logits_to_keep": 1}
            logits = torch.func.functional_call(model.hf, weights, kwargs=options).logits[:, -1]
            slopes = torch.autograd.grad(objective(logits).sum(), list(weights.values()))
        for name, slope in zip(weights, slopes, strict=True):
            sums[name] += slope
    return {name: weight.detach() * sums[name] / len(examples) for name, weight in weights.items()}


def saliency(model: LanguageModel, examples: Sequence[Example]) -> dict[str, Float[Tensor, "..."]]:
    """|weight| x sum over examples of |gradient| of the answer's mean loss, for parameters that units own parts of.

    One example a backward pass, as in the released code of Wei et al. (2024), whose SNIP score this is: absolute values
    of a batch's gradient would cancel between examples. Parameters that were frozen stay so.
    """
    weights = _weights(model)
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with one_thread(sum(weight.numel() for weight in weights.values()) < _SMALL_MODEL):
        for encoding, (length,) in _encoded(model, examples, batch=1):
            options = {"input_ids": encoding["input_ids"], "use_cache": False, "logits_to_keep": length + 1}
            with torch.enable_grad():
                logits = torch.func.functional_call(model.hf, weights, kwargs=options).logits[0]
                loss = F.cross_entropy(logits[-length - 1 : -1], encoding["input_ids"][0, -length:].to(logits.device))
                slopes = torch.autograd.grad(loss, list(weights.values()))
            for name, slope in zip(weights, slopes, strict=True):
                sums[name] += slope.abs()
    return {name: (weights[name].detach().abs() * total) for name, total in sums.items()}


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
