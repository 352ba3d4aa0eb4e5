"""How much a model leans to refusing: one number from the logits of its first token.

Owns nothing else, and imports no other module of `lib`: it is shipped by source to the server of a remote run with all
that its functions name, so they are annotated without jaxtyping.
"""

from typing import Any

import torch
from torch import Tensor

ANYTHING = -1  # in place of a right first token: every answer that is no refusal complies


def margins(logits: Tensor, openers: Any, right: Tensor) -> Tensor:
    """In nats, for each row of `logits` [prompt, vocabulary]: the log-sum-exp of the openers' logits minus the logit of
    the right first token, or minus the log-sum-exp of all others where `right` is `ANYTHING`. Differentiable.

    `openers` are ids, `right` [prompt]; both may be on another device.
    """
    opening, wanted = torch.as_tensor(openers).to(logits.device), right.to(logits.device)
    refuse = logits[:, opening].logsumexp(-1)
    comply = logits.gather(1, wanted.clamp(min=0)[:, None])[:, 0]
    if bool((right != ANYTHING).all()):
        return refuse - comply
    others = logits.index_fill(1, opening, float("-inf")).logsumexp(-1)
    return refuse - torch.where(wanted == ANYTHING, others, comply)
