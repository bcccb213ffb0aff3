# SPDX-License-Identifier: Apache-2.0
"""A real browser on the playground: what it hears, asks for and complains about."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Playwright, Request, Route

from tests.entrypoints.server import API_KEY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "there is no chromium: apt-get install chromium"
PATIENCE = 120_000
"""Milliseconds until something counts as hung. A guard: no result depends on it."""

# Notes what forms are sent, with the names of files, as Playwright does not see them. Notes in the
# page's own attributes when the first samples were scheduled, by what its card said
# then, and when some were loud enough to hear.
_LISTEN = """
const send = window.fetch;
window.forms = [];
window.fetch = (address, options) => {
  if (options?.body instanceof FormData) {
    const fields = [...options.body].map(([name, value]) => [name, value.name ?? value]);
    window.forms.push(Object.fromEntries(fields));
  }
  return send(address, options);
};
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...when) {
  const said = document.documentElement.dataset;
  said.startedWhile ??= document.querySelector(".take")?.dataset.is ?? "";
  const analyser = this.context.createAnalyser();
  this.connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const listen = () => {
    analyser.getFloatTimeDomainData(samples);
    if (samples.some((sample) => Math.abs(sample) > 0.02)) said.heard = "yes";
    else requestAnimationFrame(listen);
  };
  listen();
  return start.apply(this, when);
};
"""


@dataclass
class Visit:
    """A page, and what it did.

    Attributes:
        page: Playwright's.
        url: of the server.
        requests: what it asked for.
        complaints: errors of the console and of scripts.
        elsewhere: addresses of other servers that were asked for something.
    """

    page: Page
    url: str
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.add_init_script(_LISTEN)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._on_console)
        self.page.on("request", self._on_request)

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _on_request(self, request: Request) -> None:
        self.requests.append(request)
        if not request.url.startswith((self.url, "blob:")):
            self.elsewhere.append(request.url)

    def give_key(self) -> None:
        """Be a tab in which the key was given before."""
        self.page.add_init_script(f"sessionStorage.setItem('unison-key', '{API_KEY}')")

    def open(self, panel: str = "speak") -> None:
        """Load the page, and wait for a panel."""
        self.page.goto(f"{self.url}/#{panel}")
        self.page.locator(f"#{panel}").wait_for()

    def answer(self, path: str, status: int = 200, **options: Any) -> list[Any]:
        """Answer requests to a path in the server's place; returns them, as they come."""
        requests: list[Any] = []

        def handle(route: Route) -> None:
            requests.append(route.request)
            route.fulfill(status=status, **options)

        self.page.route(f"**{path}", handle)
        return requests

    def change_capabilities(self, **fields: Any) -> None:
        """Let the server's model be another."""

        def handle(route: Route) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, json=answer.json() | fields)

        self.page.route("**/v1/audio/capabilities", handle)

    def wait_for_takes(self, state: str, number: int = 1, within: str = "") -> None:
        """Wait until some cards are in a state, and no others there."""
        takes = self.page.locator(f"{within} .take")
        takes.and_(self.page.locator(f'[data-is="{state}"]')).nth(number - 1).wait_for()
        assert takes.count() == number

    def download(self, index: int = 0) -> bytes:
        """The file of a card."""
        with self.page.expect_download() as download:
            self.page.locator(".take [data-download]").nth(index).click()
        return Path(download.value.path()).read_bytes()


@contextlib.contextmanager
def visit(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A tab of its own; afterwards nothing was asked for elsewhere, and nothing complained."""
    context = browser.new_context(**options)
    made = Visit(context.new_page(), url)
    try:
        yield made
        assert made.elsewhere == []
        assert made.complaints == []
    finally:
        context.close()


@contextlib.contextmanager
def browser_with_microphone(playwright: Playwright, recording: Path) -> Iterator[Browser]:
    """A browser whose microphone hears a WAV file, once for each recording."""
    browser = playwright.chromium.launch(
        executable_path=CHROMIUM,
        args=[
            "--no-sandbox",  # which root may not have; the pages are our own
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            f"--use-file-for-fake-audio-capture={recording}%noloop",
        ],
    )
    try:
        yield browser
    finally:
        browser.close()


def is_sentence(text: str) -> bool:
    """Whether a person is told something: in words, from a capital letter to a full stop."""
    return re.fullmatch(r"[A-Z“].*\s.*[.!?]", text) is not None and not re.search(
        r"[{}]|Error|undefined|null|NaN|\b\d{3}\b(?! )", text
    )
