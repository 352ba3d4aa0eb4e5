"""Work on many prompts, batch by batch, that goes on with smaller batches when the device runs out of memory.

Owns what counts as running out of memory, halving and its warning. Which prompts share a batch is `prompts.by_length`'s
or the caller's business; what is done with a batch is the caller's alone.
"""

import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from lib.errors import InputError

Found = TypeVar("Found")
# Besides `torch.OutOfMemoryError`: the CPU's allocator, CUDA's own words where PyTorch's allocator was not asked, and
# its linear algebra when it finds no room for itself.
_WORDS = (
    "DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)  # fmt: skip


def out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that the device has no memory left."""
    told = isinstance(problem, RuntimeError) and any(words in str(problem) for words in _WORDS)
    return told or isinstance(problem, torch.OutOfMemoryError)


def in_order(count: int, batch: int) -> list[list[int]]:
    """Rows 0 to `count` - 1 in batches, in this order."""
    return [list(range(start, min(start + batch, count))) for start in range(0, count, batch)]


def halving(
    batches: Iterable[Sequence[int]], lengths: Sequence[int], work: Callable[[list[int]], Found]
) -> Iterator[tuple[list[int], Found]]:
    """`work(rows)` on every batch of rows, in order; yields the rows and what `work` returned.

    When the device runs out of memory, all that is still to be done goes on in batches of at most half the rows, and
    one warning a call names their size. `work` must leave nothing behind when it fails, as it is called again.
    `lengths` are those of all rows, in tokens: `InputError` names them when even one prompt at a time is too much.
    """
    waiting = deque(list(rows) for rows in batches)
    most, before, told = 0, 0, False  # most: rows in a batch, 0 while nothing has failed
    while waiting:
        rows = waiting.popleft()
        if most and len(rows) > most:
            waiting.extendleft(reversed([rows[i : i + most] for i in range(0, len(rows), most)]))
            continue
        done, found = _tried(work, rows)
        if not done:
            if len(rows) == 1:
                raise InputError(
                    f"the device is out of memory with one prompt of {lengths[rows[0]]} tokens (the longest has "
                    f"{max(lengths)}); shorten the prompts, read fewer places at once or use a device with more memory"
                )
            before, most = before or len(rows), len(rows) // 2
            waiting.appendleft(rows)
            continue
        if most and not told:
            told = True
            warnings.warn(
                f"out of memory with {before} prompts in a batch: going on with {most}, or fewer where they are longer",
                stacklevel=2,
            )
        yield rows, found[0]
        found.clear()  # else the last result would stay in memory while the next is made


def _tried(work: Callable[[list[int]], Found], rows: list[int]) -> tuple[bool, list[Found]]:
    """Whether there was enough memory, and the result in a list. Frees what a failed try has left."""
    try:
        return True, [work(list(rows))]
    except RuntimeError as problem:
        if not out_of_memory(problem):
            raise
    # Only here, after the error and with it the frames that hold the batch's tensors are gone.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False, []
