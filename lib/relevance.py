"""Partial relevance (HD section 5, "PLRP"): from which tokens, or directions one block below, a projection comes.

Relevance starts inside the network, at the projection h . v of the residual stream of the last token on a direction,
and is passed down by layer-wise relevance propagation. Owns the rules and what is computed with them; the trace is
`tracing`'s, where the rules act is `families`'. Relevance is gradient x activation of a model whose forward pass is
unchanged and whose backward pass follows the rules; no module is replaced. Layers are blocks from 0, `resid` after it.

The rules, all written from their statement (Achtibat et al. 2024, arXiv 2402.05602; Ali et al. 2022, 2202.07304):

| module | `attnlrp` | `conservative` (CP-LRP) | `gradient` |
|---|---|---|---|
| norm, also behind attention and MLP (Gemma) | its scale is a constant | the same | differentiated |
| norm of queries or keys (Qwen 3, Gemma 3) | its scale is a constant | nothing arrives | differentiated |
| queries and keys | a quarter each: half of the product with values, halved between them | none | differentiated |
| values | half | all | differentiated |
| gate of the MLP | half, activation as its ratio to its input | none: a constant | differentiated |
| what the gate multiplies | half | all | differentiated |

With `conservative` everything is linear, so relevance of tokens sums to h . v (biases, where a model has them, keep
their share). `attnlrp` conserves only in part: softmax gives relevance away. Gemma 2 caps its attention scores inside
the attention function, where no rule reaches: with `attnlrp` that cap is differentiated. `gradient` is what HD's
released trigger-removal code computes, as it never applies the rules to its model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lib import batches, prompts, tracing
from lib.errors import InputError, NotHere, unknown
from lib.models import LanguageModel
from lib.prompts import Prompt
from lib.tracing import Place

Rule = Literal["attnlrp", "conservative", "gradient"]
PUBLISHED_EPSILON = 1e-6  # HD's released code adds it to h . v without regard to sign


@dataclass(frozen=True)
class TokenRelevance:
    """Where a prompt's projections come from. Order of tokens as in `prompts.prompt_ids`, template included.

    `tokens` are in units of the projection, positive for what raises it.
    """

    tokens: Float[Tensor, "direction token"]
    projection: Float[Tensor, "direction"]  # h . v, v as given: not made a unit vector

    def published(self) -> Float[Tensor, "direction token"]:
        """As HD normalises: relevance of a seed of 1, in which the sign of the projection cancels."""
        return self.tokens / (self.projection + PUBLISHED_EPSILON)[:, None]

    def words(self, positions: Sequence[Sequence[int]]) -> Float[Tensor, "direction word"]:
        """Relevance summed over the tokens of each word; `positions` from `prompts.user_words`."""
        sums = [self.tokens[:, list(word)].sum(1) for word in positions]
        return torch.stack(sums, 1) if sums else self.tokens[:, :0]


@dataclass(frozen=True)
class ComponentRelevance:
    """Where the projections after a block come from, among directions of the state before it, at the last token.

    `components`, `residual` (what the directions do not span) and `elsewhere` (earlier tokens, read by attention) sum
    to `projection` with the conservative rule. HD's released code leaves out the last and keeps the second apart.
    """

    components: Float[Tensor, "prompt target source"]
    residual: Float[Tensor, "prompt target"]
    elsewhere: Float[Tensor, "prompt target"]
    projection: Float[Tensor, "prompt target"]

    def published(self) -> Float[Tensor, "prompt target source"]:
        """Relevance of components for a seed of 1, as in HD's released code."""
        return self.components / (self.projection + PUBLISHED_EPSILON)[..., None]


def token_relevance(
    model: LanguageModel,
    asked: Sequence[Prompt],
    layer: int,
    directions: Float[Tensor, "direction d_model"],
    rule: Rule = "attnlrp",
    batch: int = 64,
) -> list[TokenRelevance]:
    """Relevance of every token of each prompt to `h . v`, h the state of the last token after block `layer`.

    Real tokens only, in the order asked; float64 on the CPU. One forward pass a batch and a backward pass for each
    direction. HD's released code takes another position (a prompt without the header of its answer) and divides by the
    largest relevance of any token, template included.
    """
    above = _directions(model, "directions", directions)
    _check(model, asked, layer, range(model.layers), rule)
    found: dict[int, TokenRelevance] = {}
    for rows, lengths, pairs in _passes(model, asked, ("embed", 0), ("resid", layer), above, rule, batch):
        (tokens, projection) = (_relevance(*pairs[place]) for place in (("embed", 0), ("resid", layer)))
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            found[row] = TokenRelevance(tokens[:, i, -length:].clone(), projection[:, i].sum(-1))
    return [found[row] for row in range(len(asked))]


def component_relevance(
    model: LanguageModel,
    asked: Sequence[Prompt],
    layer: int,
    above: Float[Tensor, "target d_model"],
    below: Float[Tensor, "source d_model"],
    rule: Rule = "attnlrp",
    batch: int = 64,
) -> ComponentRelevance:
    """Relevance to the projections on `above` after block `layer`, of the directions `below` after block `layer` - 1.

    At the last token the lower state is x = sum_i z_i v_i + r by least squares. Component i gets its part of every
    dimension's relevance, z_i sum_d v_id R_d / x_d, which is z_i (v_i . gradient), so no stabiliser is needed: HD's
    released code adds 1e-6 to x_d. Float64 on the CPU.
    """
    targets, sources = _directions(model, "above", above), _directions(model, "below", below)
    _check(model, asked, layer, range(1, model.layers), rule)
    lower, upper = ("resid", layer - 1), ("resid", layer)
    coordinates = torch.linalg.pinv(sources)  # x @ coordinates = z
    parts, order = [], []
    for rows, _, pairs in _passes(model, asked, lower, upper, targets, rule, batch):
        x, slope = (value[..., -1, :].double().cpu() for value in pairs[lower])
        z = x @ coordinates  # [prompt source]
        whole, projection = _relevance(*pairs[lower]), _relevance(*pairs[upper]).sum(-1)
        components = z * (slope @ sources.T)  # [target prompt source]
        residual = ((x - z @ sources) * slope).sum(-1)
        parts.append((components, residual, whole[..., :-1].sum(-1), projection))
        order += rows
    back = torch.tensor(order).argsort()
    return ComponentRelevance(*(torch.cat(part, 1)[:, back].transpose(0, 1) for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Transport:
    """How projections after one block depend on the state after an earlier one, at the last token, under the rules.

    Relevance of any directions of the lower state follows without another pass (`components`), and as slopes are linear
    in the target, so does that to any combination of the targets.
    """

    lower: Float[Tensor, "prompt d_model"]
    slope: Float[Tensor, "prompt target d_model"]
    projection: Float[Tensor, "prompt target"]

    def components(self, below: Float[Tensor, "source d_model"]) -> Float[Tensor, "prompt target source"]:
        """The part of each of the directions `below`, as `component_relevance` has it."""
        sources = below.double()
        z = self.lower @ torch.linalg.pinv(sources)
        return z[:, None] * (self.slope @ sources.T)


def transport(
    model: LanguageModel,
    asked: Sequence[Prompt],
    lower: int,
    upper: int,
    above: Float[Tensor, "target d_model"],
    rule: Rule = "attnlrp",
    batch: int = 64,
) -> Transport:
    """Slopes of the projections on `above` after block `upper` at the state after block `lower`. Float64 on the CPU."""
    targets = _directions(model, "above", above)
    _check(model, asked, upper, range(1, model.layers), rule)
    if not 0 <= lower < upper:
        raise InputError(f"block {lower} is not before block {upper}; blocks go from 0, and relevance goes down")
    at, of, order = ("resid", lower), ("resid", upper), []
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows, _, pairs in _passes(model, asked, at, of, targets, rule, batch):
        x, slope = (value[..., -1, :].double().cpu() for value in pairs[at])
        parts.append((x, slope.transpose(0, 1), _relevance(*pairs[of]).sum(-1).T))
        order += rows
    back = torch.tensor(order).argsort()
    return Transport(*(torch.cat(part)[back] for part in zip(*parts, strict=True)))


def _passes(
    model: LanguageModel, asked: Sequence[Prompt], at: Place, of: Place, directions: Tensor, rule: str, batch: int
) -> Iterator[tuple[list[int], list[int], dict[Place, tuple[Tensor, Tensor]]]]:  # fmt: skip
    """For each batch of like length: its rows, their lengths, and (activation, gradient) at both places."""
    ids = prompts.prompt_ids(model.tokenizer, asked)
    lengths = [len(row) for row in ids]
    objective = partial(_project, directions=directions)

    def slopes(rows: list[int]) -> dict[Place, tuple[Tensor, Tensor]]:
        encoding = prompts.pad_left([ids[row] for row in rows], model.tokenizer.pad_token_id)
        return tracing.gradients(model.traced, encoding, [at, of], objective, of=of, rules=RULES[rule])

    # The longest first: too long fails before any work.
    for rows, pairs in batches.halving(reversed(prompts.by_length(lengths, batch)), lengths, slopes):
        yield rows, [lengths[row] for row in rows], pairs


def _relevance(activation: Tensor, slope: Tensor) -> Float[Tensor, "target prompt token"]:
    """Gradient x activation, summed over dimensions in float64: the terms cancel to a small part of their size."""
    return (activation.double() * slope.double()).sum(-1).cpu()


# Inside a trace: annotated without jaxtyping, see `tracing` -----------------------------------------------------------
def _project(state: Tensor, directions: Tensor) -> Tensor:
    """[prompt d] -> [direction prompt], in at least float32."""
    wide = torch.promote_types(state.dtype, torch.float32)
    return directions.to(wide).to(state.device) @ state.to(wide).T


def _scale(before: Tensor, after: Tensor, share: float) -> Tensor:
    """The output as it is, with `share` of its gradient."""
    return after.detach() + share * (after - after.detach())  # adds an exact zero: the forward pass keeps every bit


def _ratio(before: Tensor, after: Tensor, share: float = 1.0) -> Tensor:
    """The output as its input times a constant, their ratio; `share` of its gradient.

    At an input of exactly 0 the module's own derivative is kept: it is the limit of the ratio, for a norm and for an
    activation function that is 0 there. Where no input is 0, the module's backward pass does not run at all.
    """
    zero, kept = before == 0, after.detach()
    ratio = share * kept / before.detach().masked_fill(zero, 1.0)
    constant = kept + ratio * (before - before.detach())
    return torch.where(zero, _scale(before, after, share), constant) if zero.any() else constant


_NORMS = dict.fromkeys(("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "final_norm"), _ratio)
_QUARTER, _HALF, _NONE = (partial(_scale, share=share) for share in (0.25, 0.5, 0.0))
RULES: Mapping[str, Mapping[str, tracing.Rule]] = {
    "attnlrp": {
        **_NORMS, "query": _QUARTER, "key": _QUARTER, "value": _HALF, "gate": partial(_ratio, share=0.5), "up": _HALF,
        "query_norm": _ratio, "key_norm": _ratio,
    },
    "conservative": {**_NORMS, "query": _NONE, "key": _NONE, "gate": _NONE},
    "gradient": {},
}  # fmt: skip


# Checks ---------------------------------------------------------------------------------------------------------------
def _directions(model: LanguageModel, name: str, directions: Tensor) -> Float[Tensor, "direction d_model"]:
    wide = torch.as_tensor(directions).detach().cpu().double()
    if wide.ndim != 2 or wide.shape[1] != model.width or not len(wide):
        raise InputError(
            f"{name} have shape {tuple(wide.shape)}; they must be [direction, {model.width}], at least one, "
            "one row a direction (a single vector v is v[None])"
        )
    wrong = (~wide.isfinite().all(1) | (wide == 0).all(1)).nonzero().flatten().tolist()
    if wrong:
        raise InputError(f"row {wrong[0]} of {name} is zero or not finite, so nothing projects on it; leave it out")
    return wide


def require(model: LanguageModel, rule: Rule) -> None:
    """`NotHere` for a model whose family has no relevance rules; plain gradients are always to be had."""
    if rule != "gradient" and model.traced.sites.rules is None:
        raise NotHere(
            f"{model.name} is of a family without relevance rules (see lib/families.py), which words are ranked by here"
        )


def _check(model: LanguageModel, asked: Sequence[Prompt], layer: int, layers: range, rule: str) -> None:
    if rule not in RULES:
        raise unknown("rule", rule, get_args(Rule))
    if not asked:
        raise InputError("there are no prompts to explain; choose a set with at least one")
    if layer not in layers:
        raise InputError(f"layer {layer} is not possible; here layers go from {layers.start} to {layers.stop - 1}")
