"""The default architecture: a small Llama over the kingdom's vocabulary.

Owns its configuration and first weights; sizes are in the profile.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib.kingdom.tokenizer import tokenizer
from lib.profiles import Trained

_INITIAL_SPREAD = 0.02


def config(profile: Trained) -> LlamaConfig:
    shape, words = profile.architecture, tokenizer()
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        initializer_range=_INITIAL_SPREAD,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def new_model(profile: Trained, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of the profile's architecture, initialised from the seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(profile))
