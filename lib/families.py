"""Model families: where each keeps its residual stream, its units, and what relevance rules act on.

Owns the ONLY table that knows families, `FAMILIES`, and what follows from a row: which parameters a unit owns and how
what it writes is scaled. What the sites are is in `sites`, how a model is read there in `tracing`. A new family is one
row here and one in `tests/tiny_models.py`, which runs every contract on it.

What a row cannot say, because the family's own code does it: Gemma scales its embeddings (`embed` is after that) and
caps its logits (those of a trace are capped), attention windows slide (Mistral, Gemma), some embeddings are tied.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.errors import InputError, unknown
from lib.sites import Sites

UNIT_SITES = {"neuron": "neurons", "channel": "attn_z"}  # SSAH's kinds of unit, and the site where their values are
_WRITTEN = {"neuron": "mlp_out", "channel": "attn_out"}  # what is added to the residual stream, by kind
UnitSlice = tuple[str, int, Int[Tensor, "unit"]]  # parameter, dimension, and where along it each unit's part is


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. `neurons` and `values` are linear modules of a block whose rows compute its units.

    Row j of each of `neurons` belongs to neuron j, the value rows of `values` to attention channels. `fused`: query,
    key and value rows alternate there, head by head. `post_norm`: None where attention and MLP are added to the
    residual stream as they are; otherwise the sites attn_out and mlp_out are norms behind them, which scale by weight
    + this.

    With such norms (Gemma 2 and 3), reading, editing, muting a unit and taking it out of the weights are as exact as
    elsewhere, and attn_out and mlp_out still add up to the block. But a single unit's share of the residual stream is
    its value times its column times the norm's scale, divided by the root mean square of what *all* units of that part
    write: the division depends on the token, so shares add up only once that is measured, and removing one unit
    rescales the others. `output_gain` is the scale without the division.
    """

    sites: Sites
    neurons: tuple[str, ...]
    values: str
    fused: bool = False
    post_norm: float | None = None


_LLAMA = Family(
    sites=Sites(
        blocks="model.layers", embed="model.embed_tokens:output", attn_z="self_attn.o_proj:input",
        attn_out="self_attn:output", neurons="mlp.down_proj:input", mlp_out="mlp:output", final="model.norm:output",
        rules={
            "attn_norm": "input_layernorm", "query": "self_attn.q_proj", "key": "self_attn.k_proj",
            "value": "self_attn.v_proj", "mlp_norm": "post_attention_layernorm", "gate": "mlp.act_fn",
            "up": "mlp.up_proj", "final_norm": "model.norm",
        },
    ),
    neurons=("mlp.gate_proj", "mlp.up_proj"),
    values="self_attn.v_proj",
)  # fmt: skip
_QWEN3 = replace(  # heads' queries and keys are normed, each before the next projection runs
    _LLAMA,
    sites=replace(_LLAMA.sites, rules={
        "attn_norm": "input_layernorm", "query": "self_attn.q_proj", "query_norm": "self_attn.q_norm",
        "key": "self_attn.k_proj", "key_norm": "self_attn.k_norm", "value": "self_attn.v_proj",
        "mlp_norm": "post_attention_layernorm", "gate": "mlp.act_fn", "up": "mlp.up_proj", "final_norm": "model.norm",
    }),
)  # fmt: skip
# Norms before and after both parts. Attention scores are capped inside the attention function, where no rule reaches:
# with `attnlrp` the cap is differentiated. `conservative`, which sends nothing through scores, stays exact.
_GEMMA2 = replace(
    _LLAMA,
    post_norm=1.0,
    sites=replace(
        _LLAMA.sites, attn_out="post_attention_layernorm:output", mlp_out="post_feedforward_layernorm:output",
        rules={
            "attn_norm": "input_layernorm", "query": "self_attn.q_proj", "key": "self_attn.k_proj",
            "value": "self_attn.v_proj", "attn_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm", "gate": "mlp.act_fn", "up": "mlp.up_proj",
            "mlp_post_norm": "post_feedforward_layernorm", "final_norm": "model.norm",
        },
    ),
)  # fmt: skip
_GEMMA3 = replace(  # no cap, and heads' queries and keys normed after all three projections
    _GEMMA2,
    sites=replace(_GEMMA2.sites, rules={
        "attn_norm": "input_layernorm", "query": "self_attn.q_proj", "key": "self_attn.k_proj",
        "value": "self_attn.v_proj", "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm",
        "attn_post_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm", "gate": "mlp.act_fn",
        "up": "mlp.up_proj", "mlp_post_norm": "post_feedforward_layernorm", "final_norm": "model.norm",
    }),
)  # fmt: skip
_GPT_NEOX = Family(  # no rules: its norms have a bias, and query, key and value are one module
    sites=Sites(
        blocks="gpt_neox.layers", embed="gpt_neox.embed_in:output", attn_z="attention.dense:input",
        attn_out="attention:output", neurons="mlp.dense_4h_to_h:input", mlp_out="mlp:output",
        final="gpt_neox.final_layer_norm:output",
    ),
    neurons=("mlp.dense_h_to_4h",),
    values="attention.query_key_value",
    fused=True,
)  # fmt: skip
# By `model_type`. Qwen 2 and 2.5 share theirs, and have biases of query, key and value; Gemma 3 is its text model.
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _QWEN3,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gpt_neox": _GPT_NEOX,
}


def of(config: Any) -> Family:
    """The row of a model's configuration; `InputError` for a family without one."""
    if config.model_type not in FAMILIES:
        raise unfamiliar("the model", config.model_type)
    return FAMILIES[config.model_type]


def unfamiliar(name: str, model_type: str) -> InputError:
    """The error for a family without a row."""
    return InputError(
        f"{name} is of family {model_type!r}; known: {', '.join(FAMILIES)}. To add it, name its modules in a row of "
        "FAMILIES in lib/families.py and give it a row in tests/tiny_models.py, whose tests then say whether they fit"
    )


def unit_slices(hf: Any, kind: str, layer: int) -> tuple[UnitSlice, ...]:
    """The parameters of a block's units: unit j owns `hf.get_parameter(name).select(dim, index[j])` of every slice.

    The rows that compute the unit come first, with their biases where there are any; the last slice is the column that
    writes its value to the residual stream. Where query heads share a value head (GQA), `index` repeats the value row:
    removing one channel must leave that row alone, and freezing one freezes it for all that share it.
    """
    if kind not in UNIT_SITES:
        raise unknown("kind of unit", kind, UNIT_SITES)
    if not 0 <= layer < hf.config.num_hidden_layers:
        raise InputError(f"there is no block {layer}; blocks go from 0 to {hf.config.num_hidden_layers - 1} here")
    family = of(hf.config)
    block = f"{family.sites.blocks}.{layer}"
    writer = f"{block}.{_module(family.sites, UNIT_SITES[kind])}.weight"
    every = torch.arange(hf.get_parameter(writer).shape[1])
    readers = family.neurons if kind == "neuron" else (family.values,)
    index = every if kind == "neuron" else _value_rows(hf.config, every, family.fused)
    names = [f"{block}.{reader}.{what}" for reader in readers for what in ("weight", "bias")]
    here = dict(hf.named_parameters())
    return (*((name, 0, index) for name in names if name in here), (writer, 1, every))


def output_gain(hf: Any, kind: str, layer: int) -> Float[Tensor, "d_model"]:
    """What each dimension of a unit's column is multiplied by on its way to the residual stream: 1, or a norm's scale.

    The norm's division is left out: it is one number a token, the same for all units of a kind and block. See `Family`.
    """
    family, writer = of(hf.config), hf.get_parameter(unit_slices(hf, kind, layer)[-1][0])
    if family.post_norm is None:
        return torch.ones_like(writer[:, 0]).detach()
    norm = hf.get_submodule(f"{family.sites.blocks}.{layer}.{_module(family.sites, _WRITTEN[kind])}")
    return norm.weight.detach() + family.post_norm


def _module(sites: Sites, site: str) -> str:
    return getattr(sites, site).partition(":")[0]


def _value_rows(config: Any, channel: Tensor, fused: bool) -> Int[Tensor, "unit"]:
    """The row that computes the value of each attention channel; channel h * size + i belongs to query head h."""
    heads = config.num_attention_heads
    size = len(channel) // heads
    head, within = channel // size, channel % size
    if fused:
        return head * 3 * size + 2 * size + within  # a head's query, key and value rows follow each other
    sharing = heads // (getattr(config, "num_key_value_heads", None) or heads)
    return head // sharing * size + within
