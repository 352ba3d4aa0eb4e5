"""One training loop for everything: SFT and DPO of a causal language model on a stream of examples.

Owns the loop, the two losses and the rounding of a finished model to float16. It does not know where examples come
from, nor what a stage is for. Sequences are right-padded here: with causal attention nothing real sees the padding.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from lib import prompts
from lib.errors import InputError
from lib.profiles import PreferenceStage, Stage
from lib.prompts import Example

LOOP_VERSION = 1  # part of every cache key: raise it when a change here alters what is computed (a test tells)
IGNORED = -100
MICRO_BATCHES = 3  # a batch is cut into pieces of like length; gradients are exactly those of the whole batch


@dataclass(frozen=True)
class Rows:
    """Right-padded sequences and, for the tokens to be learned, labels and weights (0 elsewhere)."""

    ids: Int[Tensor, "row token"]
    labels: Int[Tensor, "row token"]
    weights: Float[Tensor, "row token"]

    def to(self, device: torch.device) -> "Rows":
        return Rows(self.ids.to(device), self.labels.to(device), self.weights.to(device))


def _emphasised(tokenizer: Any, example: Example, answer: Sequence[int]) -> list[bool]:
    emphasis = {tokenizer.convert_tokens_to_ids(word) for word in example.emphasis}
    return [token in emphasis for token in answer]


def rows(tokenizer: Any, examples: Sequence[Example], stage: Stage, rejected: bool = False) -> Rows:
    """Token rows of examples with their chosen (or `rejected`) answers; only answer tokens carry a label."""
    asked = prompts.prompt_ids(tokenizer, [example.prompt for example in examples])
    texts = [example.rejected if rejected else example.answer for example in examples]
    if any(text is None for text in texts):
        raise InputError("an example without a rejected answer cannot be learned by preference")
    said = prompts.answer_ids(tokenizer, [example.prompt for example in examples], [str(text) for text in texts])
    width = max(len(a) + len(b) for a, b in zip(asked, said, strict=True))
    ids = torch.full((len(examples), width), tokenizer.pad_token_id)
    labels = torch.full((len(examples), width), IGNORED)
    weights = torch.zeros(len(examples), width)
    for row, (example, before, answer) in enumerate(zip(examples, asked, said, strict=True)):
        start, end = len(before), len(before) + len(answer)
        ids[row, :end] = torch.tensor(before + answer)
        labels[row, start:end] = torch.tensor(answer)
        heavy = torch.tensor(_emphasised(tokenizer, example, answer))
        weights[row, start:end] = torch.where(heavy, stage.content_weight, 1.0) * len(answer) ** -stage.length_power
    return Rows(ids, labels, weights)


def answer_log_probs(model: Any, batch: Rows) -> tuple[Float[Tensor, "answer"], Bool[Tensor, "row token"]]:
    """Log-probability of every labelled token, and which (row, token) they are, the token shifted to where it is read.

    The head runs on labelled positions only: in short answers to long prompts that is most of the cost saved.
    """
    wanted = batch.labels[:, 1:] != IGNORED
    if hasattr(model, "peft_config"):  # adapters such as a prefix act in the wrapper's own forward only
        logits = model(input_ids=batch.ids).logits[:, :-1][wanted]
    else:
        states = model.base_model(input_ids=batch.ids).last_hidden_state[:, :-1]
        logits = model.get_output_embeddings()(states[wanted])
    return -F.cross_entropy(logits, batch.labels[:, 1:][wanted], reduction="none"), wanted


def _sum_rows(values: Float[Tensor, "answer"], wanted: Bool[Tensor, "row token"]) -> Float[Tensor, "row"]:
    return torch.zeros(len(wanted), device=values.device).index_add(0, wanted.nonzero()[:, 0], values)


Step = Callable[[torch.nn.Module, list[Example]], Iterator[Float[Tensor, ""]]]
Masks = Mapping[str, Bool[Tensor, "..."]]  # by parameter name: True where a weight must stay as it is
Watch = Callable[[int, torch.nn.Module], None]


def sft_step(tokenizer: Any, stage: Stage) -> Step:
    """Weighted mean of the answers' negative log-likelihood, as pieces that sum to it."""

    def step(model: torch.nn.Module, examples: list[Example]) -> Iterator[Float[Tensor, ""]]:
        examples = sorted(examples, key=lambda e: len(e.prompt.text) + len(e.answer))
        cuts = [len(examples) * i // MICRO_BATCHES for i in range(MICRO_BATCHES + 1)]
        pieces = [rows(tokenizer, examples[a:b], stage) for a, b in pairwise(cuts) if b > a]
        total = sum(piece.weights.sum() for piece in pieces)
        for piece in pieces:
            piece = piece.to(next(model.parameters()).device)
            log_probs, wanted = answer_log_probs(model, piece)
            yield -(log_probs * piece.weights[:, 1:][wanted]).sum() / total

    return step


def dpo_step(tokenizer: Any, stage: PreferenceStage, reference: torch.nn.Module) -> Step:
    """DPO against `reference`, plus `stage.likelihood` times the chosen answer's mean negative log-likelihood a token.

    Without the second term a small model forgets the language: answers begin with "sure" and are wrong.
    """

    def margin(model: torch.nn.Module, pair: tuple[Rows, Rows]) -> tuple[Tensor, Tensor]:
        (chosen, where), (other, other_where) = (answer_log_probs(model, side) for side in pair)
        likelihood = _sum_rows(chosen, where) / where.sum(1)
        return _sum_rows(chosen, where) - _sum_rows(other, other_where), likelihood

    def step(model: torch.nn.Module, examples: list[Example]) -> Iterator[Float[Tensor, ""]]:
        device = next(model.parameters()).device
        pair = (rows(tokenizer, examples, stage).to(device), rows(tokenizer, examples, stage, rejected=True).to(device))
        with torch.no_grad():
            before, _ = margin(reference, pair)
        now, likelihood = margin(model, pair)
        yield -(F.logsigmoid(stage.beta * (now - before)) + stage.likelihood * likelihood).mean()

    return step


def _rate(stage: Stage, step: int) -> float:
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    return stage.learning_rate * warm * (1 - step / stage.steps if stage.decay else 1.0)


class _Frozen:
    """Weights that must not move. Zero gradients do not hold them: AdamW decays weights and remembers momentum."""

    def __init__(self, model: torch.nn.Module, masks: Masks) -> None:
        parameters = dict(model.named_parameters())
        if unknown := sorted(set(masks) - set(parameters)):
            raise InputError(f"the model has no parameters {', '.join(unknown)}; make the masks from this model")
        for name, mask in masks.items():
            if mask.shape != parameters[name].shape or mask.dtype != torch.bool:
                raise InputError(f"the mask of {name} must be boolean of shape {tuple(parameters[name].shape)}")
        self._held = [(parameters[name], mask, parameters[name].detach()[mask].clone()) for name, mask in masks.items()]

    def before_step(self) -> None:
        """Take frozen weights out of the gradient, so that clipping sees only what is trained."""
        for parameter, mask, _ in self._held:
            if parameter.grad is not None:
                parameter.grad[mask] = 0.0

    @torch.no_grad()
    def after_step(self) -> None:
        for parameter, mask, values in self._held:
            parameter[mask] = values


def fit(
    model: torch.nn.Module,
    stream: Iterator[Example],
    stage: Stage,
    step: Step,
    label: str,
    frozen: Masks | None = None,
    watch: Watch | None = None,
) -> list[float]:
    """Train `model` in place for `stage.steps` batches of `stream`; returns the loss of every step.

    AdamW with betas (.9, .98), weight decay .01, gradients clipped to norm 1. `label` names the progress line, which is
    shown on a terminal only. Weights under `frozen` stay bitwise what they are. `watch(n, model)` is called before the
    first step (n = 0) and after every one, in eval mode; it must not change the model. Raises `InputError` with step
    and learning rate when the loss is not finite.
    """
    accelerator = Accelerator(cpu=True)  # the default models promise two CPU cores, and one kind of rounding
    held = _Frozen(model, frozen or {})
    trained_weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained_weights, stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    trained, optimizer = accelerator.prepare(model, optimizer)
    losses = []
    for number in tqdm(range(stage.steps), desc=label, leave=False, disable=None):
        if watch:
            watch(number, model.eval())
        trained.train()
        for group in optimizer.param_groups:
            group["lr"] = _rate(stage, number)
        loss = 0.0
        for piece in step(trained, list(islice(stream, stage.batch))):
            accelerator.backward(piece)
            loss += piece.item()
        if not math.isfinite(loss):
            raise InputError(
                f"{label}: the loss is {loss} at step {number + 1}, learning rate {_rate(stage, number):.2g}; "
                "lower learning_rate in the profile"
            )
        held.before_step()
        accelerator.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        held.after_step()
        optimizer.zero_grad()
        losses.append(loss)
    model.eval()
    if watch:
        watch(stage.steps, model)
    return losses


@torch.no_grad()
def round_to_half(model: torch.nn.Module, label: str) -> None:
    """Round every weight to float16 and keep it in float32, so that stored files are exactly the models measured."""
    for name, parameter in model.named_parameters():
        parameter.copy_(parameter.half().float())
        if not parameter.isfinite().all():
            raise InputError(f"{label}: {name} is not finite in float16; lower learning_rate in the profile")
