"""How many CPU threads torch uses inside a block of code. Owns nothing else; the default is the profile's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
