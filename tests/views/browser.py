"""A headless Chromium, driven over WebDriver (https://www.w3.org/TR/webdriver2/): what a person does to a page."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the standard's name for a reference to an element
PATIENCE = 20.0  # seconds


class Browser:
    """One window; leaving the context ends the browser."""

    def __init__(self, folder: Path, width: int = 1400, height: int = 900):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder)}
        command = [str(DRIVER), f"--port={self.port}"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options = {
            "binary": CHROMIUM,
            "args": [*arguments, f"--window-size={width},{height}", "--force-device-scale-factor=1"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self.session = ""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                value = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
                break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > end:
                    self.process.kill()
                    raise
                time.sleep(0.1)
        self.session = f"/session/{value['sessionId']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.call("DELETE", self.session)
        self.process.terminate()
        self.process.wait()

    def call(self, method: str, path: str, content: Any = None) -> Any:
        body = None if method != "POST" else json.dumps(content or {}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": "application/json"}, method=method
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def open(self, page: Path) -> None:
        self.call("POST", f"{self.session}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns."""
        return self.call("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        query = {"using": "css selector", "value": selector}
        return self.call("POST", f"{self.session}/element", query)[ELEMENT]

    def count(self, selector: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def text(self, selector: str) -> str:
        """As a person reads it."""
        return self.call("GET", f"{self.session}/element/{self.find(selector)}/text")

    def click(self, selector: str) -> None:
        self.call("POST", f"{self.session}/element/{self.find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self.call("POST", f"{self.session}/element/{self.find(selector)}/value", {"text": text})

    def choose(self, selector: str, value: str) -> None:
        """An option of a list."""
        self.click(f'{selector} option[value="{value}"]')

    def press(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", f"{self.session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def wheel(self, selector: str, amount: int) -> None:
        """Turned over the middle of an element."""
        origin = {ELEMENT: self.find(selector)}
        scroll = {"type": "scroll", "x": 0, "y": 0, "deltaX": 0, "deltaY": amount, "origin": origin}
        self.call("POST", f"{self.session}/actions", {"actions": [{"type": "wheel", "id": "w", "actions": [scroll]}]})

    def drag(self, selector: str, dx: int, dy: int) -> None:
        """From the middle of an element."""
        moves = [
            {"type": "pointerMove", "x": 0, "y": 0, "origin": {ELEMENT: self.find(selector)}, "duration": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "x": dx, "y": dy, "origin": "pointer", "duration": 100},
            {"type": "pointerUp", "button": 0},
        ]
        self.call("POST", f"{self.session}/actions", {"actions": [{"type": "pointer", "id": "p", "actions": moves}]})

    def wait(self, script: str, *arguments: Any) -> Any:
        """Until a function body returns something that is true; that."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return value

    def complaints(self) -> list[str]:
        """What the browser's console says: errors of scripts, and what the page's policy forbade."""
        return [entry["message"] for entry in self.call("POST", f"{self.session}/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """The addresses that were asked for, as the browser's own record has them."""
        entries = self.call("POST", f"{self.session}/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def photograph(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", f"{self.session}/screenshot")))
