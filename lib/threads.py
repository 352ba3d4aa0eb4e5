"""How many CPU threads torch uses inside a block of code, and work side by side in processes. Owns nothing else; the
number of threads is the profile's by default, that of processes what `cpus` says."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

import torch

from lib import cpus


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """One CPU thread inside, if wanted. Sharing small matrices among threads costs more than it saves: on two busy
    cores, two threads took thirty times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, however it did: else it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None  # runs in the processes of a pool only

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def side_by_side(work: Callable[..., object], calls: Sequence[tuple]) -> None:
    """`work(*call)` for each of `calls`, in order, in as many processes as there are CPUs for; for work that keeps what
    it finds in the cache. One call is left to the caller, and so are all where there is one CPU: a process of its own
    would only cost its start.

    `work` is a function of a module, its arguments can be pickled; the first error is raised.
    """
    count = min(len(calls), cpus.processes())
    if count < 2:
        return
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        for one in [pool.submit(work, *call) for call in calls]:
            one.result()
