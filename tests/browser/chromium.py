"""Chromium without a window, told what to do through a pipe: no package of Python is needed for it.

In: a page's file, a width, a colour scheme. Out: what a script in it says, a picture, what it wanted to fetch.

Source: the Chrome DevTools Protocol; with ``--remote-debugging-pipe`` messages are JSON that ends with a zero
byte, from file descriptor 3 to file descriptor 4.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--hide-scrollbars", "--disable-dev-shm-usage", "--disable-background-networking"),
)


@dataclass
class Page:
    """One open page."""

    reading: Any
    writing: Any
    session: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self.writing.write(json.dumps(message).encode() + b"\0")
        self.writing.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        parts = bytearray()
        while (byte := self.reading.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium ended")
            parts += byte
        return dict(json.loads(parts))

    def show(self, path: Path, width: int, scheme: Literal["light", "dark"], *, mobile: bool = False) -> None:
        """Open a file as a screen of this width and colour scheme shows it."""
        self.events.clear()
        scale = 2 if mobile else 1
        metrics = {"width": width, "height": 900, "deviceScaleFactor": scale, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media="", features=features)
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """Value of an expression in the page, also where the page itself may run no script."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def print(self) -> bytes:
        """The page on paper, as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False, paperWidth=8.27)["data"])

    @property
    def requests(self) -> list[str]:
        """What was fetched, the page itself included."""
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    @property
    def complaints(self) -> list[str]:
        """What the browser logged."""
        return [str(event["params"]) for event in self.events if event.get("method") in ("Log.entryAdded",)]


@contextmanager
def open_page() -> Iterator[Page]:
    """A browser with one empty page, and a profile that is thrown away."""
    if PROGRAM is None:
        raise RuntimeError("there is no Chromium here: make report-screens installs it")
    (their_input, our_output), (our_input, their_output) = os.pipe(), os.pipe()

    def take_three_and_four() -> None:
        # Copies first: a pipe's own number may be 3 or 4.
        first, second = os.dup(their_input), os.dup(their_output)
        os.dup2(first, 3)
        os.dup2(second, 4)

    with tempfile.TemporaryDirectory() as profile:
        browser = subprocess.Popen(
            [PROGRAM, *FLAGS, f"--user-data-dir={profile}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=take_three_and_four,
        )
        os.close(their_input)
        os.close(their_output)
        try:
            with os.fdopen(our_input, "rb") as reading, os.fdopen(our_output, "wb") as writing:
                page = Page(reading, writing)
                target = page.call("Target.createTarget", url="about:blank")["targetId"]
                page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
                for domain in ("Page", "Network", "Log"):
                    page.call(f"{domain}.enable")
                yield page
        finally:
            browser.kill()
            browser.wait()
