"""One training loop for everything: SFT and DPO of a causal language model on a stream of examples.

Owns the loop, the two losses and the rounding of a finished model to float16. It does not know where examples come
from, nor what a stage is for. Sequences are right-padded here: with causal attention nothing real sees the padding.

A model is trained where its caller put it. In processes started by `accelerate launch` its weights are sharded, see
`processes`: each reads the same stream and computes its rows of every batch, and losses and updates are those of one.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from lib import precision, processes, prompts
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

    def of(self, chosen: Int[Tensor, "own"]) -> "Rows":
        """Some of the rows."""
        return Rows(self.ids[chosen], self.labels[chosen], self.weights[chosen])


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

    The head runs on labelled positions only: in short answers to long prompts that is most of the cost saved. When the
    model is sharded, every process must ask for the same batch; each computes its rows, and all get every value.
    """
    wanted = batch.labels[:, 1:] != IGNORED
    if not processes.sharded(model):
        return _log_probs(model, batch), wanted
    own = processes.dealt(len(batch.ids)).to(wanted.device)
    return processes.joined(_log_probs(model, batch.of(own)), wanted.nonzero()[:, 0]), wanted


def _log_probs(model: Any, batch: Rows) -> Float[Tensor, "answer"]:
    wanted, labels = batch.labels[:, 1:] != IGNORED, batch.labels[:, 1:]
    if hasattr(model, "peft_config"):  # adapters such as a prefix act in the wrapper's own forward only
        logits = model(input_ids=batch.ids).logits[:, :-1][wanted]
    elif processes.sharded(model):  # so do the hooks that gather weights
        places = wanted.any(0).nonzero()[:, 0]  # where any row has a label
        logits = model(input_ids=batch.ids, logits_to_keep=places, use_cache=False).logits[wanted[:, places]]
    else:
        states = model.base_model(input_ids=batch.ids).last_hidden_state[:, :-1]
        logits = _capped(model, model.get_output_embeddings()(states[wanted.to(states.device)]))
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # a loss to three digits would not tell one step from the next
    return -F.cross_entropy(logits, labels[wanted].to(logits.device), reduction="none")


def _capped(model: Any, logits: Float[Tensor, "answer vocabulary"]) -> Float[Tensor, "answer vocabulary"]:
    """Gemma 2 squeezes its logits behind the head, in the model's own forward."""
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _sum_rows(values: Float[Tensor, "answer"], wanted: Bool[Tensor, "row token"]) -> Float[Tensor, "row"]:
    return values.new_zeros(len(wanted)).index_add(0, wanted.nonzero()[:, 0].to(values.device), values)


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
            piece = piece.to(processes.device(model))
            log_probs, wanted = answer_log_probs(model, piece)
            yield -(log_probs * piece.weights[:, 1:][wanted].to(log_probs.device)).sum() / total

    return step


def dpo_step(tokenizer: Any, stage: PreferenceStage, reference: torch.nn.Module) -> Step:
    """DPO against `reference`, plus `stage.likelihood` times the chosen answer's mean negative log-likelihood a token.

    Without the second term a small model forgets the language: answers begin with "sure" and are wrong. Of several
    processes, each needs the whole reference.
    """
    if any(parameter.is_meta for parameter in reference.parameters()):
        raise InputError(
            "the reference was read by the first process only; launch with --fsdp_cpu_ram_efficient_loading false"
        )

    def margin(model: torch.nn.Module, pair: tuple[Rows, Rows]) -> tuple[Tensor, Tensor]:
        (chosen, where), (other, other_where) = (
            answer_log_probs(model, side.to(processes.device(model))) for side in pair
        )
        likelihood = _sum_rows(chosen, where) / where.sum(1).to(chosen.device)
        return _sum_rows(chosen, where) - _sum_rows(other, other_where), likelihood

    def step(model: torch.nn.Module, examples: list[Example]) -> Iterator[Float[Tensor, ""]]:
        pair = (rows(tokenizer, examples, stage), rows(tokenizer, examples, stage, rejected=True))
        with torch.no_grad():
            before, _ = margin(reference, pair)
        now, likelihood = margin(model, pair)
        yield -(F.logsigmoid(stage.beta * (now - before.to(now.device))) + stage.likelihood * likelihood).mean()

    return step


def _rate(stage: Stage, step: int) -> float:
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    return stage.learning_rate * warm * (1 - step / stage.steps if stage.decay else 1.0)


def _check(masks: Masks, model: torch.nn.Module) -> None:
    parameters = dict(model.named_parameters())
    if unknown := sorted(set(masks) - set(parameters)):
        raise InputError(f"the model has no parameters {', '.join(unknown)}; make the masks from this model")
    for name, mask in masks.items():
        if mask.shape != parameters[name].shape or mask.dtype != torch.bool:
            raise InputError(f"the mask of {name} must be boolean of shape {tuple(parameters[name].shape)}")


class _Frozen:
    """Weights that must not move. Zero gradients do not hold them: AdamW decays weights and remembers momentum.

    Of a sharded model, each process holds its own part.
    """

    def __init__(self, model: torch.nn.Module, masks: Masks) -> None:
        parameters = dict(model.named_parameters())
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        for name, mask in masks.items():
            here = processes.local_part(mask, parameters[name])
            self._held.append((parameters[name], here, processes.local(parameters[name].detach())[here].clone()))

    def before_step(self) -> None:
        """Take frozen weights out of the gradient, so that clipping sees only what is trained."""
        for parameter, mask, _ in self._held:
            if parameter.grad is not None:
                processes.local(parameter.grad)[mask] = 0.0

    @torch.no_grad()
    def after_step(self) -> None:
        for parameter, mask, values in self._held:
            processes.local(parameter)[mask] = values


def _silent() -> bool | None:
    """Whether training shows no bar; None: only on a terminal. A notebook that somebody runs by hand has none and shows
    it; one that the pipeline runs has TQDM_DISABLE set, and stays the same in every run."""
    if os.environ.get("TQDM_DISABLE") or not processes.is_first():
        return True
    return False if "ipykernel" in sys.modules else None


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

    AdamW with betas (.9, .98), weight decay .01, gradients clipped to norm 1. `label` names the progress bar: see
    `_silent`. Weights under `frozen` stay bitwise what they are. `watch(n, model)` is called before the
    first step (n = 0) and after every one, in eval mode; it must not change the model. 16-bit weights are trained in
    float32 and rounded when all is done, so `watch` sees them before that. Raises `InputError` with step and learning
    rate when the loss is not finite. In launched processes all call this alike; `model` is sharded after, and has to
    have more than 16 bits.
    """
    _check(frozen or {}, model)
    if processes.launched() and precision.narrow(model):
        raise InputError(f"{label}: weights of 16 bits would be rounded after every step; open the model in float32")
    with precision.in_float32(model):
        return _fit(model, stream, stage, step, label, frozen or {}, watch)


def _fit(
    model: torch.nn.Module,
    stream: Iterator[Example],
    stage: Stage,
    step: Step,
    label: str,
    frozen: Masks,
    watch: Watch | None,
) -> list[float]:
    accelerator = processes.accelerator()
    trained_weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained_weights, stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    trained, optimizer = processes.shard(accelerator, model, optimizer)
    held = _Frozen(trained, frozen)
    losses = []
    for number in tqdm(range(stage.steps), desc=f"training {label}", leave=False, disable=_silent()):
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
