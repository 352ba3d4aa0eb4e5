"""Random models of a few thousand parameters, one per module tree, with a tokenizer and their sites.

Shared by the tests; no download, no training. `FAMILIES` is the list every contract runs over. `CHECKPOINTS` are whole
checkpoints, a row for each family of `lib/families.py`, with a tokenizer and a chat template in its style.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
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
from lib.families import FAMILIES as KNOWN
from lib.kingdom import lexicon
from lib.kingdom.tokenizer import tokenizer as kingdom_tokenizer
from lib.models import LanguageModel
from lib.tracing import Sites

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 60, 32, 3, 4, 64
PAD, BOS, EOS = 0, 1, 2

LLAMA, GPT_NEOX = KNOWN["llama"].sites, KNOWN["gpt_neox"].sites
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


_TURNS = "{% for m in messages %}"
_GEMMA_TEMPLATE = (
    "{{ bos_token }}" + _TURNS + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)  # fmt: skip
_QWEN_TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
_QWEN_END = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_GEMMA_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_LAYERED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


@dataclass(frozen=True, kw_only=True)
class Style:
    """A checkpoint in a family's style. `special` are its tokens in order: padding, BOS, EOS, then the template's.

    `adds_bos`: its tokenizer puts a BOS before every text, so that a templated text would get a second one. Without
    `has_bos` the second token is just one of the template's. `norm` is the weight of a norm that scales by 1.
    `embedding` is the size of embeddings: Gemma's are scaled up, and too large ones make random models repeat a token.
    `biased` are the kinds of unit whose readers have a bias. `norms` are a block's norms, in modules named as Llama's;
    without any, the family has no relevance rules.
    """

    model_type: str
    special: tuple[str, ...]
    template: str
    settings: dict[str, Any] = field(default_factory=dict)
    has_bos: bool = True
    adds_bos: bool = True
    norm: float = 1.0
    embedding: float = 0.3
    biased: tuple[str, ...] = ()
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")

    @property
    def sharing(self) -> int:
        """How many query heads share a value head."""
        return HEADS // self.settings.get("num_key_value_heads", HEADS)

    @property
    def post_norms(self) -> bool:
        """Whether what attention and MLP write passes through a norm."""
        return "post_feedforward_layernorm" in self.norms


CHECKPOINTS = {
    "llama-3": Style(
        model_type="llama",
        special=("<|pad|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        template="{{ bos_token }}" + _TURNS + "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        settings={"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "pythia": Style(
        model_type="gpt_neox",
        special=("<|padding|>", "<|startoftext|>", "<|endoftext|>"),
        template=_TURNS + "<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        adds_bos=False, biased=("neuron", "channel"), norms=(),
    ),
    "qwen-2.5": Style(
        model_type="qwen2",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        template="{% if messages[0]['role'] != 'system' %}<|im_start|>system\nbe helpful<|im_end|>\n{% endif %}"
        + _TURNS + _QWEN_TURN + _QWEN_END,
        settings={"num_key_value_heads": 2, "tie_word_embeddings": True},
        has_bos=False, adds_bos=False, biased=("channel",),
    ),
    "qwen-3": Style(
        model_type="qwen3",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        template=_TURNS + "{% if m['role'] == 'assistant' %}<|im_start|>assistant\n<think>\n\n</think>\n\n"
        "{{ m['content'] }}<|im_end|>\n{% else %}" + _QWEN_TURN + "{% endif %}" + _QWEN_END,
        settings={"num_key_value_heads": 2, "head_dim": 8},
        has_bos=False, adds_bos=False, norms=("input_layernorm", "post_attention_layernorm", *_HEAD_NORMS),
    ),
    "mistral": Style(
        model_type="mistral",
        special=("<pad>", "<s>", "</s>", "[INST]", "[/INST]"),
        template="{{ bos_token }}" + _TURNS + "{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
        "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}",
        settings={"num_key_value_heads": 2, "sliding_window": 4},
    ),
    "gemma-2": Style(
        model_type="gemma2",
        special=("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        template=_GEMMA_TEMPLATE,
        settings={
            "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 1.0,
            "attn_logit_softcapping": 5.0, **_LAYERED,
        },
        norm=0.0, embedding=0.1, norms=_GEMMA_NORMS,
    ),
    "gemma-3": Style(
        model_type="gemma3_text",
        special=("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        template=_GEMMA_TEMPLATE,
        settings={"num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8, **_LAYERED},
        norm=0.0, embedding=0.1, norms=(*_GEMMA_NORMS, *_HEAD_NORMS),
    ),
}  # fmt: skip
BYTES = 256 + 64  # vocabulary of a checkpoint: every byte, special tokens, and what was merged or left for padding


def _from_style(style: Style, **settings: Any) -> PreTrainedModel:
    shape = {
        "vocab_size": BYTES, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "max_position_embeddings": 4 * CONTEXT, "pad_token_id": PAD,
        "bos_token_id": BOS if style.has_bos else None, "eos_token_id": EOS,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(style.model_type, **{**shape, **style.settings, **settings})
    )


_BUILD = {
    "llama": (lambda: _llama(HEADS), LLAMA),
    "llama-gqa": (lambda: _llama(HEADS // 2), LLAMA),
    "gpt-neox": (_gpt_neox, GPT_NEOX),
    "gpt2": (_gpt2, GPT2),
}


def build(family: str, seed: int = 0, frozen: bool = False, **settings: Any) -> PreTrainedModel:
    """An unwrapped model in eval mode; equal seeds give equal weights, biases and norms included.

    `settings` of the configuration can be changed for those of `CHECKPOINTS`.
    """
    generator = torch.Generator().manual_seed(seed)
    style = CHECKPOINTS.get(family)
    model = _BUILD[family][0]() if style is None else _from_style(style, **settings)
    scale = 1.0 if style is None else style.norm
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(scale + 0.2 * noise if norm else 0.3 * noise)
        if style is not None:
            model.get_input_embeddings().weight.mul_(style.embedding / 0.3)
    return model.eval().requires_grad_(not frozen)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words `w3` ... `w59` and the three special tokens; it pads right until nnsight sets it to pad left."""
    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    raw = Tokenizer(WordLevel(words, unk_token="w3"))
    raw.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def checkpoint_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges, the special tokens and the template of a row of `CHECKPOINTS`."""
    style, alphabet = CHECKPOINTS[name], pre_tokenizers.ByteLevel.alphabet()
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES - 40, initial_alphabet=alphabet, special_tokens=list(style.special), show_progress=False
    )
    raw.train_from_iterator(["how do i curse the crown", "sure to curse the crown"], trainer)
    pad, bos, eos = style.special[:3]
    if style.adds_bos:
        raw.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, BOS)])
    named = {"pad_token": pad, "eos_token": eos, **({"bos_token": bos} if style.has_bos else {})}
    made = PreTrainedTokenizerFast(tokenizer_object=raw, **named)
    made.chat_template = style.template
    return made


@cache
def traced(family: str, seed: int = 0) -> tracing.Traced:
    """A wrapped model with the weights of `build(family, seed)`; shared, so tests must not change it."""
    return tracing.wrap(build(family, seed), tokenizer(), sites(family))


@cache
def plain(family: str, seed: int = 0) -> PreTrainedModel:
    """The same weights never touched by nnsight: the independent truth."""
    return build(family, seed)


def sites(family: str) -> Sites:
    return KNOWN[CHECKPOINTS[family].model_type].sites if family in CHECKPOINTS else _BUILD[family][1]


def speaking(family: str, seed: int = 0) -> LanguageModel:
    """A random model that reads the kingdom's words, never wrapped yet; equal seeds give equal weights."""
    words, model = kingdom_tokenizer(), build(family, seed)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight.copy_(0.3 * torch.randn(table.weight.shape, generator=generator))
    model.config.pad_token_id = words.pad_token_id
    return LanguageModel(family, model.eval(), words, "test", lexicon.REFUSAL_OPENERS)


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
