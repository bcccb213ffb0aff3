# SPDX-License-Identifier: Apache-2.0
"""The page at /: its headers, its files, and how it is turned off. What it does is tested in a
browser, by `test_playground_browser.py`."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tools.fork import overlay
from vllm.entrypoints.speech.server.arguments import add_server_arguments
from vllm.entrypoints.speech.server.playground import FILES, serve_playground

ROOT = Path(__file__).parents[2]
VENDORED = FILES / "vendor" / "wavesurfer"


def client(args: Namespace | None = None) -> TestClient:
    app = FastAPI()
    serve_playground(app, args)
    return TestClient(app)


def policy(answer_headers: str) -> dict[str, list[str]]:
    directives = [part.split() for part in answer_headers.split(";")]
    return {name: sources for name, *sources in directives}


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline() -> None:
    answer = client().get("/")
    directives = policy(answer.headers["content-security-policy"])
    (nonce,) = re.findall(r'nonce="([^"]+)"', answer.text)
    assert directives.pop("style-src") == ["'self'", f"'nonce-{nonce}'"]
    assert directives == {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "img-src": ["'self'"],
        "connect-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"https?:|//[a-z]|\bstyle=|\bon[a-z]+=|<style|<script>", answer.text)


def test_each_answer_has_a_nonce_of_its_own() -> None:
    server = client()
    pages = {server.get("/").text for _ in range(3)}
    assert len(pages) == 3 and not any("{nonce}" in page for page in pages)


@pytest.mark.parametrize(
    "path", sorted(p for p in FILES.rglob("*") if p.is_file()), ids=lambda path: path.name
)
def test_every_file_is_served_with_the_page_s_headers(path: Path) -> None:
    name = path.relative_to(FILES).as_posix()
    answer = client().get(f"/playground/{name}")
    if name == "index.html":
        assert answer.status_code == 404
        return
    assert answer.content == path.read_bytes()
    assert policy(answer.headers["content-security-policy"])["style-src"] == ["'self'"]
    assert answer.headers["cache-control"] == "no-cache"
    if path.suffix == ".js":
        assert "javascript" in answer.headers["content-type"]


@pytest.mark.parametrize("path", ["nothing.js", "../server/routes.py", "%2e%2e/server/routes.py"])
def test_other_files_are_not_served(path: str) -> None:
    assert client().get(f"/playground/{path}").status_code == 404


def test_every_file_that_the_page_names_is_there() -> None:
    page = (FILES / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'(?:src|href)="playground/([^"]+)"', page))
    assert named >= {"main.js", "style.css", "icon.svg"}
    modules = {path for path in FILES.glob("*.js")}
    for module in modules:
        for name in re.findall(r'from "\./([^"]+)"', module.read_text(encoding="utf-8")):
            named.add(name)
    assert all((FILES / name).is_file() for name in named)
    # No module is left over.
    assert {path.name for path in modules} <= named


def test_the_flag_turns_it_off() -> None:
    parser = ArgumentParser()
    add_server_arguments(parser)
    off, on = client(parser.parse_args(["--no-playground"])), client(parser.parse_args([]))
    for path in ("/", "/playground/main.js"):
        assert (off.get(path).status_code, on.get(path).status_code) == (404, 200)


def test_what_is_vendored_keeps_its_licence() -> None:
    assert "BSD 3-Clause" in (VENDORED / "LICENSE").read_text(encoding="utf-8")
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert "wavesurfer.js" in notice and VENDORED.relative_to(FILES.parents[3]).as_posix() in notice


def test_a_wheel_holds_every_file() -> None:
    packaged = overlay.files(ROOT / "vllm", ())
    below = "vllm/entrypoints/speech/playground/"
    found = {name.removeprefix(below) for name in packaged if name.startswith(below)}
    assert found == {p.relative_to(FILES).as_posix() for p in FILES.rglob("*") if p.is_file()}
    assert found > {"index.html", "main.js", "style.css", "vendor/wavesurfer/LICENSE"}
