"""A headless Chromium for tests, driven by its DevTools protocol: opens pages, waits, looks, times what they ask."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.support.waiting import wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip


@dataclass
class Asked:
    """A question of a page to `/graphql`: the operation's name, and seconds until the whole answer was there."""

    operation: str
    began: float
    seconds: float | None = None


@dataclass
class Browser:
    """One page. Times are by the browser's clock."""

    connection: ClientConnection
    asked: dict[str, Asked] = field(default_factory=dict)
    _last: int = 0

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        self._last += 1
        self.connection.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.connection.recv(60))
            if message.get("id") == self._last:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def open(self, url: str, *, width: int = 1440, height: int = 900) -> None:
        """Open a page, forgetting what the one before has asked."""
        self.asked.clear()
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self.command("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.command("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def text(self) -> str:
        """Return the text that the page shows."""
        return str(self.evaluate("document.body ? document.body.innerText : ''") or "")

    def wait_for_text(self, *words: str, timeout: float = 60) -> None:
        """Wait until the page shows all of the words."""
        wait_for(lambda: all(word in self.text() for word in words), timeout, f"the page to show {words}")

    def wait_until_quiet(self, seconds: float = 1.5, timeout: float = 60) -> None:
        """Wait until no question is open and none has begun for some seconds; those that repeat count once."""

        def quiet() -> bool:
            self.evaluate("0")
            first = {one.operation: one for one in reversed(self.asked.values())}
            return bool(first) and all(one.seconds is not None for one in first.values()) and self._age() > seconds

        try:
            wait_for(quiet, timeout, "the page to have its answers")
        except AssertionError as error:
            waiting = sorted({one.operation for one in self.asked.values() if one.seconds is None})
            raise AssertionError(f"{error}; open: {waiting}; asked: {len(self.asked)}") from None

    def click(self, text: str) -> bool:
        """Click on the smallest visible element with this text; tell whether there is one."""
        script = f"""
        (() => {{
          const found = [...document.querySelectorAll('a, button, [role=tab], [role=button], span, div')]
            .filter(one => one.innerText && one.innerText.trim() === {json.dumps(text)} && one.offsetParent);
          if (!found.length) return false;
          found[found.length - 1].click();
          return true;
        }})()
        """
        return bool(self.evaluate(script))

    def picture(self, path: Path) -> None:
        """Write what is shown as a PNG file."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))

    def _age(self) -> float:
        seen: dict[str, float] = {}
        for one in self.asked.values():
            seen.setdefault(one.operation, one.began)
        return self.command("Performance.getMetrics")["metrics"][0]["value"] - max(seen.values())  # type: ignore[no-any-return]

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        known = self.asked.get(parameters.get("requestId", ""))
        if message["method"] == "Network.requestWillBeSent":
            request = parameters["request"]
            if urlsplit(request["url"]).path.endswith("/graphql") and request["method"] == "POST":
                name = json.loads(request.get("postData") or "{}").get("operationName") or "?"
                self.asked[parameters["requestId"]] = Asked(name, parameters["timestamp"])
        elif message["method"] == "Network.loadingFinished" and known is not None:
            known.seconds = parameters["timestamp"] - known.began
        elif message["method"] == "Network.loadingFailed" and known is not None:
            # The page has thought better of it, and asks again or needs it no more.
            del self.asked[parameters["requestId"]]


@contextlib.contextmanager
def browsing(directory: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it afterwards."""
    profile = directory / "profile"
    command = [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = profile / "DevToolsActivePort"
        wait_for(lambda: address.exists() and "\n" in address.read_text(), 60, "Chromium to start")
        port = address.read_text().splitlines()[0]
        pages = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
        target = next(page for page in pages if page["type"] == "page")["webSocketDebuggerUrl"]
        with connect(target, max_size=None, compression=None, proxy=None) as connection:
            browser = Browser(connection)
            for domain in ("Page", "Runtime", "Network", "Performance"):
                browser.command(f"{domain}.enable")
            yield browser
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
