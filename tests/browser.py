"""A headless Chromium for the tests, spoken to by its DevTools protocol: what a page looks like, and what it holds.

Owns the browser's process and the few calls that the tests need. No driver is needed beside the browser itself.
"""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-extensions", "--no-first-run", "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
_PATIENCE = 60  # seconds for the browser to start, and for each answer


def program() -> str | None:
    """The browser's path, or None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page of a running browser, as wide as `width` CSS pixels."""

    def __init__(self, address: str, width: int) -> None:
        # Chromium refuses a socket that names an origin.
        self._socket = websocket.create_connection(address, timeout=_PATIENCE, suppress_origin=True)
        self._number = 0
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come before it are dropped."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        answer = self._until(lambda message: message.get("id") == self._number)
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, wanted: Any) -> dict[str, Any]:
        while True:
            message = json.loads(self._socket.recv())
            if wanted(message):
                return message

    def open(self, file: Path) -> None:
        """Show a local file and wait until all of it is loaded."""
        self._number += 1
        command = {"id": self._number, "method": "Page.navigate", "params": {"url": file.resolve().as_uri()}}
        self._socket.send(json.dumps(command))
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, script: str) -> Any:
        """What a JavaScript expression comes to, as JSON."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, file: Path, scale: float = 0.5) -> None:
        """The whole page, however long, as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": scale}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def tab(home: Path, width: int) -> Iterator[Tab]:
    """A browser with one empty page, its files in the folder `home`; ended in the end."""
    path = program()
    assert path, "there is no browser"
    process = subprocess.Popen(
        [path, *OPTIONS, f"--user-data-dir={home}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        page = Tab(_address(home, process), width)
        try:
            yield page
        finally:
            page.close()
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def _address(home: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the browser's page listens: the browser writes its port into a file once it is ready."""
    note, limit = home / "DevToolsActivePort", time.monotonic() + _PATIENCE
    while time.monotonic() < limit:
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        if note.is_file() and len(lines := note.read_text().splitlines()) == 2:
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=_PATIENCE) as answer:
                pages = [target for target in json.load(answer) if target["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.05)
    raise TimeoutError("the browser did not start")
