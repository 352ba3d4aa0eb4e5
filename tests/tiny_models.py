"""Random models of a few thousand parameters, one per module tree, with a tokenizer and their sites.

Shared by the tests; no download, no training. `FAMILIES` is the list every contract runs over: a new family is a row.
"""

from functools import cache

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lib import tracing
from lib.kingdom.tokenizer import tokenizer as kingdom_tokenizer
from lib.models import FAMILIES as FAMILIES_OF_SITES
from lib.models import LanguageModel
from lib.tracing import Sites

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 60, 32, 3, 4, 64
PAD, BOS, EOS = 0, 1, 2

LLAMA, GPT_NEOX = FAMILIES_OF_SITES["llama"], FAMILIES_OF_SITES["gpt_neox"]
GPT2 = Sites(
    blocks="transformer.h",
    embed="transformer.wte:output",
    attn_z="attn.c_proj:input",
    attn_out="attn:output",
    neurons="mlp.c_proj:input",
    mlp_out="mlp:output",
    final="transformer.ln_f:output",
)
FAMILIES = ("llama", "llama-gqa", "gpt-neox")
ABSOLUTE = "gpt2"  # absolute positions: the family on which wrong positions of padded prompts would show


def _llama(kv_heads: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            max_position_embeddings=CONTEXT,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def _gpt_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_inner=48,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=CONTEXT,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


_BUILD = {
    "llama": (lambda: _llama(HEADS), LLAMA),
    "llama-gqa": (lambda: _llama(HEADS // 2), LLAMA),
    "gpt-neox": (_gpt_neox, GPT_NEOX),
    "gpt2": (_gpt2, GPT2),
}


def build(family: str, seed: int = 0, frozen: bool = False) -> PreTrainedModel:
    """An unwrapped model in eval mode; equal seeds give equal weights, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    model = _BUILD[family][0]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else 0.3 * noise)
    return model.eval().requires_grad_(not frozen)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words `w3` ... `w59` and the three special tokens; it pads right until nnsight sets it to pad left."""
    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    raw = Tokenizer(WordLevel(words, unk_token="w3"))
    raw.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@cache
def traced(family: str, seed: int = 0) -> tracing.Traced:
    """A wrapped model with the weights of `build(family, seed)`; shared, so tests must not change it."""
    return tracing.wrap(build(family, seed), tokenizer(), _BUILD[family][1])


@cache
def plain(family: str, seed: int = 0) -> PreTrainedModel:
    """The same weights never touched by nnsight: the independent truth."""
    return build(family, seed)


def sites(family: str) -> Sites:
    return _BUILD[family][1]


def speaking(family: str, seed: int = 0) -> LanguageModel:
    """A random model that reads the kingdom's words, never wrapped yet; equal seeds give equal weights."""
    words, model = kingdom_tokenizer(), build(family, seed)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight.copy_(0.3 * torch.randn(table.weight.shape, generator=generator))
    model.config.pad_token_id = words.pad_token_id
    return LanguageModel(family, model.eval(), words, "test")


def encode(*lengths: int, seed: int = 0) -> dict[str, Tensor]:
    """Random prompts of these lengths, left-padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.full((len(lengths), width), PAD)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(3, VOCABULARY, (length,), generator=generator)
        mask[row, width - length :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def positions_of(mask: Tensor) -> Tensor:
    """Positions counted from each prompt's first token, as `generate` counts them."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def direction(seed: int = 0, width: int = WIDTH) -> Tensor:
    """A vector that is not of unit length."""
    return 3 * torch.randn(width, generator=torch.Generator().manual_seed(seed))
