"""How papermill runs a notebook here: a cell that never ends or shows without end is stopped, and nothing stays behind.

Owns those limits. What is made of a notebook that stopped is for `execute` to say. No page imports this.
"""

import asyncio
import contextlib
import os
import signal
from typing import Any

import nbformat
from nbclient.exceptions import CellExecutionError
from nbclient.util import ensure_async
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.log import logger

NAME = "bounded"
PATIENCE = 12 * 3600  # seconds a cell may take, far more than any does: what waits for ever ends, too
MOST_SHOWN = 20_000_000  # characters a notebook may show: all at once, they would fill memory and disk
_START, _LATE = 300, 120  # seconds for a kernel to start, and for outputs to arrive after their cell: a busy machine's


class _Client(PapermillNotebookClient):
    """A notebook's kernel. What it shows is counted; beyond the most, it is dropped and the kernel interrupted."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shown, self._group = 0, None
        self._interrupt: asyncio.Future[Any] | None = None
        self.on_cell_start, self.on_cell_executed = self._started, self._check

    def execute(self, **options: Any) -> Any:
        try:
            return super().execute(**options)
        finally:
            if self._group:  # processes that a kernel which died had started
                with contextlib.suppress(OSError):
                    os.killpg(self._group, signal.SIGKILL)

    def _started(self, **_: Any) -> None:
        self._group = self.km.provisioner.pgid

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        shown = content.get("data", {}).values() if msg["msg_type"] != "stream" else [content["text"]]
        self._shown += sum(len(str(value)) for value in shown)
        if self._shown <= MOST_SHOWN or msg["msg_type"] == "status":
            return super().process_message(msg, cell, cell_index)
        if self._interrupt is None:
            self._interrupt = asyncio.ensure_future(ensure_async(self.km.interrupt_kernel()))
        return None

    def _check(self, cell: Any, **_: Any) -> None:
        """After a cell: an error in place of what it showed last, if that was too much."""
        if self._shown <= MOST_SHOWN:
            return
        name, text = "TooMuchOutput", f"it shows more than {MOST_SHOWN / 1e6:g} MB; show less"
        kept = [output for output in cell.outputs if output.output_type != "error"]
        cell.outputs = [*kept, nbformat.v4.new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])]
        raise CellExecutionError(traceback=f"{name}: {text}", ename=name, evalue=text)


class _Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> Any:
        limits = {"timeout": PATIENCE, "startup_timeout": _START, "iopub_timeout": _LATE}
        return _Client(nb_man, kernel_name=kernel_name, log=logger, **limits).execute()


papermill_engines.register(NAME, _Engine)
