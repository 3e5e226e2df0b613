"""A headless Chromium for tests, driven by its DevTools protocol: opens pages, waits, looks, times what they ask."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
from collections import Counter
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


_LONGEST_TASK = """
  window.longestTask = 0;
  new PerformanceObserver(list => list.getEntries().forEach(
    one => { window.longestTask = Math.max(window.longestTask, one.duration); }
  )).observe({type: 'longtask', buffered: true});
"""


_TRAVEL = """
  (() => {
    const words = %(words)s, began = performance.now();
    window.arrived = null;
    window.longestTask = 0;
    clearInterval(window.watch);
    history.pushState(null, '', %(path)s);
    dispatchEvent(new PopStateEvent('popstate', {state: null}));
    window.watch = setInterval(() => {
      const text = document.body.innerText;
      if (!words.every(word => text.includes(word))) return;
      window.arrived = performance.now() - began;
      clearInterval(window.watch);
    }, 20);
  })()
"""
"""Goes to a path as the browser's own buttons do, and notes when the words are there, by the page's clock."""


@dataclass
class Asked:
    """A question of a page to `/graphql`.

    Attributes:
        operation: its name.
        began: by the browser's clock.
        new: what it asks for that the page had not asked for before; nothing when it only asks again, as pages do for
            as long as they are open.
        seconds: until the whole answer was there; None as long as it is not.
        size_bytes: of the answer.
    """

    operation: str
    began: float
    new: frozenset[str]
    seconds: float | None = None
    size_bytes: int = 0


@dataclass(frozen=True)
class Loading:
    """What a page needed until it had everything that it asked for. Times in seconds.

    Attributes:
        settled_seconds: from the beginning of the navigation to the last answer.
        slowest_seconds: of a single answer, and of which operation.
        answers: with `megabytes` in all.
        longest_block_seconds: for which the page could not answer a click.
    """

    settled_seconds: float
    slowest_seconds: float
    operation: str
    answers: int
    megabytes: float
    longest_block_seconds: float


@dataclass
class Browser:
    """One page. Times are by the browser's clock."""

    connection: ClientConnection
    asked: dict[str, Asked] = field(default_factory=dict)
    began: float = 0.0
    _document: str = ""
    _travelled: bool = False
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
        self._travelled = False
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self.command("Page.navigate", url=url)

    def travel(self, path: str, *words: str, timeout: float = 60) -> float:
        """Go to another page of the program that is open, as a click on a link does; return the seconds it took.

        It is there when it shows all of the words, of which the page before must not show all. The program is not
        started again; what the page before asked is forgotten.
        """
        assert not all(word in self.text() for word in words), f"the page before shows {words} too"
        self.asked.clear()
        self._travelled, self.began = True, self._now()
        self.evaluate(_TRAVEL % {"path": json.dumps(path), "words": json.dumps(words)})
        wait_for(lambda: self.evaluate("window.arrived !== null"), timeout, f"the page to show {words}")
        return float(self.evaluate("window.arrived")) / 1000

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.command("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def text(self) -> str:
        """Return the text that the page shows."""
        return str(self.evaluate("document.body ? document.body.innerText : ''") or "")

    def wait_for_text(self, *words: str, timeout: float = 60) -> float:
        """Wait until the page shows all of the words; return the seconds since its navigation began."""
        wait_for(lambda: all(word in self.text() for word in words), timeout, f"the page to show {words}")
        return float(self.evaluate("performance.now()")) / 1000

    def wait_until_quiet(self, seconds: float = 1.5, timeout: float = 60) -> Loading:
        """Wait until the page has every answer and has asked for nothing new for some seconds.

        A page that is open asks again and again for what it has: this is not waited for. More of the same is new: the
        second hundred of an asset's events, say, or other assets.
        """

        def quiet() -> bool:
            self.evaluate("0")
            new = [one for one in self.asked.values() if one.new]
            # A program that was open before may know everything.
            answered = (bool(new) or self._travelled) and all(one.seconds is not None for one in new)
            return answered and self._now() - max((one.began for one in new), default=self.began) > seconds

        try:
            wait_for(quiet, timeout, "the page to have its answers")
        except AssertionError as error:
            new = [one for one in self.asked.values() if one.new]
            waiting = sorted({one.operation for one in new if one.seconds is None})
            often = Counter(one.operation for one in new).most_common(3)
            raise AssertionError(f"{error}; open: {waiting}; new: {often}; asked: {len(self.asked)}") from None
        return self._loading()

    def _loading(self) -> Loading:
        new = [(one, one.seconds or 0.0) for one in self.asked.values() if one.new]
        slowest, seconds = max(new, key=lambda pair: pair[1], default=(None, 0.0))
        return Loading(
            round(max((one.began + seconds for one, seconds in new), default=self.began) - self.began, 2),
            round(seconds, 2),
            slowest.operation if slowest else "",
            len(new),
            round(sum(one.size_bytes for one, _ in new) / 1048576, 1),
            round(float(self.evaluate("window.longestTask") or 0) / 1000, 2),
        )

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

    def _now(self) -> float:
        metrics = self.command("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "Timestamp"))

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        known = self.asked.get(parameters.get("requestId", ""))
        if message["method"] == "Network.requestWillBeSent":
            request, document = parameters["request"], parameters["loaderId"]
            if parameters["requestId"] == document:
                # The page before goes on asking until now, and nobody tells of what becomes of that.
                self.asked.clear()
                self._document, self.began = document, parameters["timestamp"]
            elif document != self._document:
                return
            if urlsplit(request["url"]).path.endswith("/graphql") and request["method"] == "POST":
                question = json.loads(request.get("postData") or "{}")
                name = question.get("operationName") or "?"
                before = {part for one in self.asked.values() if one.operation == name for part in one.new}
                new = _parts(question.get("variables") or {}) - before
                self.asked[parameters["requestId"]] = Asked(name, parameters["timestamp"], new)
        elif message["method"] == "Network.loadingFinished" and known is not None:
            known.seconds = parameters["timestamp"] - known.began
            known.size_bytes = int(parameters["encodedDataLength"])
        elif message["method"] == "Network.loadingFailed" and known is not None:
            # The page has thought better of it, and asks again or needs it no more.
            del self.asked[parameters["requestId"]]


def _parts(variables: dict[str, Any]) -> frozenset[str]:
    """Return what a question asks for: its assets one by one, which come in other bundles each time; else all of it."""
    if assets := variables.get("assetKeys"):
        return frozenset(json.dumps(asset) for asset in assets)
    # The window of a time line moves with the clock.
    return frozenset([json.dumps({name: value for name, value in variables.items() if name != "after"})])


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
            browser.command("Page.addScriptToEvaluateOnNewDocument", source=_LONGEST_TASK)
            yield browser
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
