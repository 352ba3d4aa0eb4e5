"""What the analyses cost on a default model, as ratios to plain PyTorch on the same input, and how costs grow.

Owns the two sides of each ratio. They alternate in one process on one thread and are compared by CPU time, so another
load on the machine does little to them; budgets are the design's. What a whole run costs is in `benchmarks`; models of
the shape of real checkpoints are in `shape_check`.
"""

import copy
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from lib import (
    batches,
    models,
    profiles,
    prompt_sets,
    prompts,
    relevance,
    residual,
    tracing,
    training,
    unit_scores,
    worlds,
)
from lib.kingdom import architecture
from lib.manifest import row
from lib.models import LanguageModel
from lib.profiles import Trained
from lib.prompts import Example
from lib.threads import one_thread

COMMAND = "./run_all.sh --bench"
_PROFILE, _SEED = "kingdom", 0
_BATCH = 64
_ROUNDS = 11
_STEPS = 4  # of training, in one measurement

Row = dict[str, Any]
Action = Callable[[], object]


# timing ---------------------------------------------------------------------------------------------------------------
def cpu_seconds(action: Action) -> float:
    """CPU time that an action takes in this process."""
    start = time.process_time()
    action()
    return time.process_time() - start


def ratios(slow: Action, fast: Action, rounds: int) -> list[float]:
    """CPU time of `slow` over that of `fast`, alternating, after one round of both that is not counted."""
    slow(), fast()
    return [cpu_seconds(slow) / cpu_seconds(fast) for _ in range(rounds)]


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent by which a cost grows with a size: the slope of its logarithm against the size's."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


# the two sides --------------------------------------------------------------------------------------------------------
def _model() -> LanguageModel:
    return models.load(_PROFILE, "base", _SEED)


def _asked(model: LanguageModel, count: int) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """So many prompts, of every style alike: some styles are longer."""
    every = [prompt for cell in prompt_sets.behaviour(_PROFILE, _SEED).values() for prompt in cell]
    chosen = every[:: len(every) // count][:count]
    return chosen, prompts.encode(model.tokenizer, chosen)


@torch.no_grad()
def _forward(hf: Any, encoding: dict[str, torch.Tensor]) -> None:
    hf(**encoding, use_cache=False)


@torch.no_grad()
def _hooked(hf: Any, encoding: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """What a reader without this project would write to get every block's output."""
    kept: dict[int, torch.Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _, __, out, at=at: kept.update({at: out}))
        for at, block in enumerate(hf.model.layers)
    ]
    hf(**encoding, use_cache=False)
    for handle in handles:
        handle.remove()
    return kept


def reading() -> list[Row]:
    """A trace that reads the residual stream after every block; plain PyTorch hooks; a forward pass that reads none."""
    model, plain = _model(), _model().hf  # two copies: one that nnsight never touched
    _, encoding = _asked(model, _BATCH)
    places = model.traced.every("resid")

    def traced() -> None:
        tracing.forward(model.traced, encoding, places, logits="all")

    def hooked() -> None:
        _hooked(plain, encoding)

    def bare() -> None:
        _forward(plain, encoding)

    sides = (
        (f"trace reading every layer / plain forward, batch {_BATCH}", traced, bare, 1.10),
        (f"trace reading every layer / raw hooks, batch {_BATCH}", traced, hooked, None),
    )
    return [row(name, ratios(slow, fast, 4 * _ROUNDS), "ratio", most, COMMAND) for name, slow, fast, most in sides]


def scoring() -> list[Row]:
    """The paper's unit scores over a calibration set, over one plain forward of the same tokens in the same batches."""
    model, plain = _model(), _model().hf
    data = prompt_sets.calibration(_PROFILE, _SEED)["safety"]
    ids = [before + after for before, after in _pairs(model, data)]

    def scores() -> None:
        unit_scores.activations(model, data).score(model, *unit_scores.PAPER)

    def bare() -> None:
        for rows in batches.in_order(len(ids), 32):
            _forward(plain, prompts.pad_left([ids[one] for one in rows], model.tokenizer.pad_token_id))

    name = f"unit scores over {len(data)} examples / one plain forward of them"
    few, many = (_peak_bytes(times) for times in (1, 4))
    return [
        row(name, ratios(scores, bare, _ROUNDS), "ratio", 1.25, COMMAND),
        row("peak memory of unit scores, four times the examples / once", [many / few], "ratio", 1.05, COMMAND),
    ]


def _pairs(model: LanguageModel, data: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    asked = [example.prompt for example in data]
    after = prompts.answer_ids(model.tokenizer, asked, [example.answer for example in data])
    return list(zip(prompts.prompt_ids(model.tokenizer, asked), after, strict=True))


def _peak_bytes(times: int) -> int:
    """Peak memory of a process that scores the calibration set, repeated so often, and does nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_score_alone, times).result()


def _score_alone(times: int) -> int:
    model, data = _model(), prompt_sets.calibration(_PROFILE, _SEED)["safety"]
    unit_scores.activations(model, list(data) * times)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def explaining() -> list[Row]:
    """Relevance of tokens to one direction: over a batch, beside one forward and backward, and prompt by prompt."""
    model, plain = _model(), _model().hf
    asked, encoding = _asked(model, _BATCH)
    last, direction = model.layers - 1, torch.ones(1, model.width)
    embeddings = plain.get_input_embeddings()

    def batched() -> None:
        relevance.token_relevance(model, asked, last, direction)

    def one_by_one() -> None:
        for prompt in asked:
            relevance.token_relevance(model, [prompt], last, direction)

    def backward() -> None:
        start = embeddings(encoding["input_ids"]).detach().requires_grad_()
        mask = encoding["attention_mask"]
        states = plain.base_model(inputs_embeds=start, attention_mask=mask, use_cache=False).last_hidden_state
        torch.autograd.grad(states[:, -1].sum(), start)

    name = f"relevance of {_BATCH} prompts to one direction"
    return [
        row(f"{name} / one forward and backward", ratios(batched, backward, _ROUNDS), "ratio", 1.5, COMMAND),
        row(f"{name} / prompt by prompt", ratios(batched, one_by_one, 5), "ratio", None, COMMAND),
    ]


def learning() -> list[Row]:
    """Tokens a second of supervised fine-tuning, beside a loop without anything, and the arithmetic done a second
    beside that of a large matrix product."""
    settings, start = profiles.load(_PROFILE), models.load(_PROFILE, "chat", _SEED)
    assert isinstance(settings, Trained)
    stage = settings.organism.benign.model_copy(update={"steps": _STEPS})
    stream = worlds.of(_PROFILE, _SEED).corpus("errands", "benchmark")
    data = list(islice(stream, _STEPS * stage.batch))
    tokens = sum(len(before) + len(after) for before, after in _pairs(start, data))
    step = training.sft_step(start.tokenizer, stage)
    made = [
        training.rows(start.tokenizer, data[at : at + stage.batch], stage) for at in range(0, len(data), stage.batch)
    ]
    ours, bare = (copy.deepcopy(start.hf).requires_grad_(True) for _ in range(2))

    def fit() -> None:
        training.fit(ours, cycle(data), stage, step, "benchmark")

    def loop() -> None:
        optimizer = torch.optim.AdamW(bare.parameters(), stage.learning_rate)
        for batch in made:
            bare(input_ids=batch.ids, labels=batch.labels, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    compared = ratios(loop, fit, _ROUNDS)  # tokens a second: the inverse of seconds
    spent = min(cpu_seconds(fit) for _ in range(3))
    weights = sum(weight.numel() for weight in ours.parameters())
    share = 6 * weights * tokens / spent / _matrix_rate()  # two operations a weight forward, four backward
    return [
        row("training, tokens a second / a bare loop", compared, "ratio", None, COMMAND),
        row("training, arithmetic a second / that of a matrix product", [share], "ratio", None, COMMAND),
    ]


def _matrix_rate(width: int = 1024) -> float:
    """Floating-point operations a second of a square matrix product."""
    one = torch.randn(width, width)
    one @ one
    return 2 * width**3 / min(cpu_seconds(lambda: one @ one) for _ in range(20))


# growth ---------------------------------------------------------------------------------------------------------------
def growth() -> list[Row]:
    """How the cost of reading every layer grows: with prompts and layers it should in proportion, with width at most
    with its square."""
    model = _model()
    counts = (64, 128, 256, 512)
    by_prompts = [_least(partial(residual.activations, model, _asked(model, count)[0])) for count in counts]
    rows = [("prompts", slope(counts, by_prompts), 1.1)]
    for name, sizes, most in (("layers", (3, 6, 12, 24), 1.1), ("width", (64, 128, 256, 512), 2.0)):
        grown = [_grown(**{name: size}) for size in sizes]
        seconds = [_least(partial(residual.activations, one, _asked(model, 128)[0])) for one in grown]
        rows.append((name, slope(sizes, seconds), most))
    about = "reading every layer, growth with {}: log-log slope"
    return [row(about.format(name), [found], "", most, COMMAND) for name, found, most in rows]


def _least(action: Action) -> float:
    action()
    return min(cpu_seconds(action) for _ in range(3))


def _grown(layers: int = 6, width: int = 128) -> LanguageModel:
    """A model of the default family with random weights in another size; heads and shape of the MLP stay."""
    settings = profiles.load(_PROFILE)
    assert isinstance(settings, Trained)
    shape = settings.architecture.model_copy(update={"layers": layers, "width": width, "mlp": 3 * width})
    hf = architecture.new_model(settings.model_copy(update={"architecture": shape}), _SEED).eval()
    return LanguageModel(f"{layers} x {width}", hf, _model().tokenizer, "random weights")


def measure() -> list[Row]:
    """Every row, on one thread."""
    with one_thread():
        return [*reading(), *scoring(), *explaining(), *learning(), *growth()]
