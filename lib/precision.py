"""Weights in float32 for as long as something needs them finer than they are stored. Owns nothing else; what needs it
says so: a step of training, or of a search between two models, is smaller than the gap between two 16-bit numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

NARROW = (torch.bfloat16, torch.float16)


def narrow(model: torch.nn.Module) -> bool:
    """Whether some weights of a model have 16 bits."""
    return any(parameter.dtype in NARROW for parameter in model.parameters())


@contextmanager
def in_float32(*models: torch.nn.Module) -> Iterator[None]:
    """16-bit weights of these models in float32 inside, and afterwards rounded to what they were.

    In place, so that ties and whatever holds the models stay; a model that is not changed inside comes back bit for
    bit. Weights of 32 or 64 bits are left alone. Inside, a 16-bit model takes twice its memory.
    """
    widened = []
    for model in models:
        for parameter in model.parameters():
            if parameter.dtype in NARROW:
                widened.append((parameter, parameter.dtype))
                parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in widened:
            parameter.data = parameter.data.to(dtype)
