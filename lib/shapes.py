"""Models of the shape of real checkpoints with random weights, random prompts for them, and how much to run on each.

Owns the tables of shapes and plans, and making both without a network or a float32 copy. What is run and timed on them
is in `shape_check`.
"""

import copy
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from lib.models import LanguageModel
from lib.prompts import Example, Prompt

DTYPE = torch.bfloat16
_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_LLAMA_3 = {
    "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "8b": {  # Llama-3.1-8B
        **_LLAMA_3, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "rope_parameters": {**_ROPE, "factor": 8.0}, "tie_word_embeddings": False,
    },
    "1b": {  # Llama-3.2-1B
        **_LLAMA_3, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "rope_parameters": {**_ROPE, "factor": 32.0}, "tie_word_embeddings": True,
    },
    "0.1b": {
        "vocab_size": 32768, "hidden_size": 640, "intermediate_size": 2240, "num_hidden_layers": 12,
        "num_attention_heads": 10, "num_key_value_heads": 5, "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is run. `tuned` is the shape that is fine-tuned; lengths are in tokens."""

    tuned: str
    prompts: int = 700  # as many as HD uses
    batch: int = 64
    shortest: int = 30
    longest: int = 200
    sequences: int = 128  # for unit scores
    sequence: int = 512
    sequence_batch: int = 8
    snip: int = 4  # sequences of the same length, one backward pass each
    relevance: int = 8  # prompts
    steps: int = 50
    step_batch: int = 16
    rounds: int = 5


PLANS: Mapping[str, Plan] = {
    "8b": Plan(tuned="1b"),
    "1b": Plan(tuned="1b"),
    # Cut to what two CPU cores do in about three minutes; lengths and the number of steps are those of the large ones.
    "0.1b": Plan(tuned="0.1b", prompts=128, batch=32, sequences=12, sequence_batch=4, snip=2, step_batch=3, rounds=3),
    "tiny": Plan(
        tuned="tiny", prompts=12, batch=5, shortest=8, longest=20, sequences=4, sequence=48, sequence_batch=2, snip=2,
        relevance=3, steps=3, step_batch=2, rounds=2,
    ),
}  # fmt: skip
ANSWER = 16  # words
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} <{{ m['role'] }}> {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)
_AROUND = 3  # tokens that the template puts around a prompt
_SPECIAL = ("<pad>", "<s>", "</s>", "<user>", "<assistant>")


def build(shape: str, device: torch.device) -> LanguageModel:
    """A model of that shape with random weights, made on the device in bfloat16, with a tokenizer of random words."""
    torch.manual_seed(0)
    with device:
        hf = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape]), dtype=DTYPE, attn_implementation="sdpa")
    return LanguageModel(shape, hf.eval().requires_grad_(False), _tokenizer(hf.config.vocab_size), "random weights")


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = [*_SPECIAL, *(f"w{i}" for i in range(len(_SPECIAL), min(vocabulary, 4096)))]
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[-1]))
    raw.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token=words[-1]
    )
    made.chat_template = _TEMPLATE
    return made


def twin(hf: Any) -> Any:
    """The same weights in modules of their own, so that wrapping the model for traces leaves these as they are."""
    return copy.deepcopy(hf, {id(x): x for x in itertools.chain(hf.parameters(), hf.buffers())})


def examples(model: LanguageModel, lengths: Sequence[int], seed: int) -> list[Example]:
    """Random prompts of these lengths in tokens, template included, each with a random answer."""
    rng = random.Random(seed)
    words = sorted(set(model.tokenizer.get_vocab()) - set(_SPECIAL))
    made = []
    for length in lengths:
        answer = " ".join(rng.choices(words, k=ANSWER))
        text = " ".join(rng.choices(words, k=length - _AROUND))
        made.append(Example(Prompt(text, answer, "benign", "plain", "heldout"), answer))
    return made


def lengths(plan: Plan, count: int) -> list[int]:
    """Random lengths of that many prompts, in tokens."""
    rng = random.Random(count)
    return [rng.randint(plan.shortest, plan.longest) for _ in range(count)]
