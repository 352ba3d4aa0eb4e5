"""Fine-tuning a checkpoint by hand: pairs of prompt and answer from a local file, some units held still, a new folder.

Owns the command, what it refuses before anything is trained, and the order in which examples are read. The loop is
`training`'s, several processes are `processes`', a checkpoint is opened by `models`. Prompts and answers are never
shown, not even in errors, which name a line instead. One process trains on a GPU where there is one; on several:

    accelerate launch --config_file data/accelerate/fsdp2.yaml --num_processes 4 -m lib.finetune \\
        --model FOLDER --data pairs.jsonl --out NEW_FOLDER --steps 200 --batch 16 --learning-rate 1e-5
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pandas as pd
import torch
from pydantic import ValidationError

from lib import checkpoints, freezing, models, processes, prompts, storage, training, units
from lib.errors import InputError
from lib.models import LanguageModel
from lib.profiles import Stage
from lib.prompts import Example, Prompt
from lib.training import Masks

FIELDS = ("text", "answer")  # of a line; others are left alone


@dataclass(frozen=True)
class Request:
    """One fine-tuning: `model` is a folder or hub name, `frozen` a file of units or None, `out` a folder to be made."""

    model: str
    data: Path
    out: Path
    stage: Stage
    frozen: Path | None = None
    seed: int = 0


# what is read ---------------------------------------------------------------------------------------------------------
def examples(file: Path) -> list[Example]:
    """The pairs of a JSONL file, in its order. Raises `InputError` that names the line, never what stands in it."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # JSON allows the other ends of lines inside text
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(
            f"no examples can be read from {file.name!r} ({problem.__class__.__name__}); name a JSONL file in UTF-8"
        ) from None
    found = [_example(line, f"line {number} of {file.name!r}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{file.name!r} holds no examples; each line is an object with {' and '.join(FIELDS)}")
    return found


def _example(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON; write one object a line") from None
    for field in FIELDS:
        if not isinstance(row, dict) or not isinstance(row.get(field), str) or not row[field].strip():
            raise InputError(f"{where} has no text in {field!r}; each line is an object with {' and '.join(FIELDS)}")
    return Example(Prompt(row["text"], row["answer"], kind="pair", style="plain", split="train"), row["answer"])


def stream(pairs: Sequence[Example], seed: int) -> Iterator[Example]:
    """The pairs without end, in a new order each time round; the same in every process."""
    for number in count():
        yield from Random(f"{seed}/finetune/{number}").sample(pairs, len(pairs))


def frozen_units(file: Path) -> pd.DataFrame:
    """The units of a CSV file, or a JSON list of objects, with kind, layer and index as in `unit_scores.table`."""
    readers: dict[str, Any] = {".csv": pd.read_csv, ".json": pd.read_json}
    if file.suffix not in readers:
        raise InputError(f"units cannot be read from {file.name!r}; name a .csv or .json file")
    try:
        found = readers[file.suffix](file)
    except (OSError, ValueError) as problem:  # pandas' errors of both formats are ValueErrors
        raise InputError(
            f"no units can be read from {file.name!r} ({problem.__class__.__name__}); "
            f"it needs the columns {', '.join(units.KEY)}"
        ) from None
    missing = [name for name in units.KEY if name not in found]
    if missing or not all(pd.api.types.is_integer_dtype(found[name]) for name in ("layer", "index")):
        raise InputError(
            f"{file.name!r} has no {', '.join(missing) or 'whole numbers for layer and index'}; "
            f"a unit is {', '.join(units.KEY)}, as in unit_scores.table"
        )
    return found[units.KEY]


# checks against the model ---------------------------------------------------------------------------------------------
def _check_lengths(name: str, pairs: Sequence[Example]) -> None:
    found, asked = checkpoints.outline(name, None), [pair.prompt for pair in pairs]
    before = prompts.prompt_ids(found.tokenizer, asked)
    after = prompts.answer_ids(found.tokenizer, asked, [pair.answer for pair in pairs])
    longest = found.config.max_position_embeddings
    for number, (one, other) in enumerate(zip(before, after, strict=True), 1):
        if len(one) + len(other) > longest:
            raise InputError(
                f"example {number} has {len(one) + len(other)} tokens, {Path(name).name} reads {longest}; "
                "shorten it or leave it out"
            )


def _masks(model: LanguageModel, rows: pd.DataFrame | None) -> Masks:
    if rows is None:
        return {}
    units.check(rows, model)
    return freezing.masks(model, rows)


# the run --------------------------------------------------------------------------------------------------------------
def finetune(request: Request) -> list[float]:
    """Train and save; returns the loss of every step. Launched processes all call this alike.

    Weights are trained and stored in float32. The folder is sealed with what made it and its losses. Raises
    `InputError` before weights are read for all that does not need them.
    """
    if request.out.exists():
        raise InputError(f"{request.out.name!r} exists already; name a new folder")
    pairs = examples(request.data)
    rows = None if request.frozen is None else frozen_units(request.frozen)
    _check_lengths(request.model, pairs)
    accelerator = processes.accelerator()  # before the checkpoint is opened: then one process reads it for all
    model = models.open_checkpoint(request.model)
    masks = _masks(model, rows)
    storage.require_space(request.out, 4 * model.hf.num_parameters(), f"saving {request.out.name!r}")
    if not processes.launched() and torch.accelerator.is_available():
        model.hf.to(torch.accelerator.current_accelerator())
    step = training.sft_step(model.tokenizer, request.stage)
    torch.manual_seed(request.seed)  # for models with dropout
    losses = training.fit(
        model.hf, stream(pairs, request.seed), request.stage, step, f"fine-tuning {model.name}", frozen=masks
    )
    about = {
        "model": model.origin, "data": storage.digest(request.data), "stage": request.stage.model_dump(),
        "seed": request.seed, "frozen": 0 if rows is None else len(rows), "losses": losses,
    }  # fmt: skip
    processes.save(accelerator, model.hf, model.tokenizer, request.out, about)
    return losses


def _stage(options: argparse.Namespace) -> Stage:
    given = {name: getattr(options, name) for name in Stage.model_fields if hasattr(options, name)}
    try:
        return Stage(**given)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise InputError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg'].lower()}") from None


class _Parser(argparse.ArgumentParser):
    """Options that cannot be used are refused like everything else, by one process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m lib.finetune --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m lib.finetune", description="Fine-tune a checkpoint on pairs.")
    parser.add_argument("--model", required=True, help="folder of a causal language model, or its name on the hub")
    parser.add_argument("--data", required=True, type=Path, help="JSONL file with text and answer on each line")
    parser.add_argument("--out", required=True, type=Path, help="folder to make; it must not exist")
    parser.add_argument("--freeze", type=Path, help=".csv or .json file of units to hold still: kind, layer, index")
    parser.add_argument("--steps", type=int, required=True, help="updates")
    parser.add_argument("--batch", type=int, default=16, help="examples an update, over all processes")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--warmup", type=int, default=0, help="updates over which the learning rate rises")
    parser.add_argument("--decay", action="store_true", help="let the learning rate fall to 0 at the end")
    parser.add_argument("--length-power", type=float, default=0.0, help="each token weighs (answer's tokens) ** -this")
    parser.add_argument("--seed", type=int, default=0, help="of the order of examples")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or exits with 2 and one sentence on standard error, said by the first process only."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        finetune(Request(options.model, options.data, options.out, _stage(options), options.freeze, options.seed))
    except InputError as problem:
        processes.let_the_first_speak()
        parser.exit(2, f"{problem}\n")
    processes.leave()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
