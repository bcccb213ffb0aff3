# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is what the code accepts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile

from tests.entrypoints.server import Server, free_port, wait_until_up
from tests.support import published_layouts
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.testing import random_checkpoint

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "examples/README.md",
        ROOT / "vllm/unison/default_model/README.md",
    ]
)

NOT_RUN = {
    ("README.md", "make demo"): "builds in the checkout; test_make_demo_says_what_the_readme_says",
    ("docs/acoustic_decoding.md", "vllm serve MODEL"): "tests/engine/audio has such engines",
    ("docs/default_model.md", "python benchmarks/evaluate_default_model.py"): "takes an hour",
    ("docs/default_model.md", "python examples/train_default_model/version_1/"): "takes hours",
}
"""How snippets begin that no test runs, and why; keep it short."""

COMMANDS = ("vllm ", "python ", "python3 ", "pip ", "make ", "curl ", "git ")
ELSEWHERE = {
    "docs/building.md": "tests/fork does these steps",
    "docs/benchmarks.md": "take hours",
    "docs/releases.md": "tests/fork and tests/releases do these steps",
}


@dataclass(frozen=True)
class Snippet:
    """A piece of code of a page.

    Attributes:
        page: its path in the repository.
        line: of the page, from 1.
        language: "python", "sh" (also commands that are only indented) or ">>>".
        text: without indentation.
        test: what runs it: "alone" (a process of its own), "server" (tests that start one), "model"
            or "" (none).
    """

    page: str
    line: int
    language: str
    text: str
    test: str


def snippets(path: Path) -> list[Snippet]:
    """The code on a page that a reader could paste somewhere."""
    page, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    blocks = re.finditer(
        r"^```(?P<language>\w+)(?P<title> title=.*)?\n(?P<fenced>[\s\S]*?)^```$"
        r"|(?<=\n\n)(?P<indented>(?:    .*\n)(?:(?:    .*)?\n)*)",
        text,
        re.MULTILINE,
    )
    found = []
    for block in blocks:
        code = textwrap.dedent(block["fenced"] or block["indented"].rstrip() + "\n")
        language = block["language"] or (
            "sh" if code.startswith(COMMANDS) else ">>>" if code.startswith(">>>") else ""
        )
        if language in ("python", "sh", ">>>") and page not in ELSEWHERE:
            line = text[: block.start()].count("\n") + 1
            found.append(Snippet(page, line, language, code, _test_of(page, language, code)))
    return found


def _test_of(page: str, language: str, code: str) -> str:
    if "localhost:8000" in code or (page == "docs/serving.md" and language == "sh"):
        return "server"
    if language == ">>>":
        return "errors"
    if language == "python":
        return "alone"
    return "model" if "open blue door" in code and "transcribe" in code else ""


def plain_environment() -> dict[str, str]:
    """Without what the tests' settings make easier."""
    ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "OPENAI_API_KEY", "VLLM_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    ours_too = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    return kept | ours_too | {"HF_HUB_OFFLINE": "1"}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        command, cwd=folder, env=plain_environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def json_blocks() -> dict[str, Any]:
    """The titled JSON blocks of the format's page."""
    text = (ROOT / "docs" / "model_format.md").read_text(encoding="utf-8")
    return {
        title: json.loads(body)
        for title, body in re.findall(r'```json title="(\w+)"\n(.*?)```', text, re.DOTALL)
    }


def spec_of(layout: dict[str, Any], tasks: dict[str, Any] | None = None) -> SpeechSpec:
    config = SimpleNamespace(
        stream_layout=layout,
        embedding=None,
        head_offsets=False,
        codec=None,
        tasks=tasks,
        guidance=None,
    )
    return SpeechSpec.from_config(config)


@pytest.mark.parametrize("title", ["opuslm_7b", "bagpiper"])
def test_published_layouts_are_written_out_as_they_are_tested(title):
    shown = json_blocks()[title]
    assert shown == getattr(published_layouts, title)()
    assert spec_of(shown).layout == StreamLayout.from_dict(shown)
    assert StreamLayout.from_dict(StreamLayout.from_dict(shown).to_dict()).to_dict() == (
        StreamLayout.from_dict(shown).to_dict()
    )


def test_the_tasks_shown_are_those_of_the_random_checkpoint():
    shown = json_blocks()["tasks"]
    assert shown == random_checkpoint.default_tasks()
    spec = spec_of(random_checkpoint.stream_layout(4), shown)
    assert [task.name for task in spec.tasks] == list(shown)


def test_the_voices_and_defaults_shown_are_accepted():
    blocks = json_blocks()
    spec = SpeechSpec.from_config(
        SimpleNamespace(
            stream_layout=random_checkpoint.stream_layout(4),
            embedding=None,
            head_offsets=False,
            codec=None,
            guidance=None,
            generation_defaults=blocks["generation_defaults"],
            **(blocks["voices"] | {"tasks": random_checkpoint.default_tasks()}),
        )
    )
    assert spec.default_voice in spec.voices
    assert set(spec.generation_defaults) <= {task.name for task in spec.tasks}
    config = SimpleNamespace(
        stream_layout=random_checkpoint.stream_layout(4),
        embedding=None,
        head_offsets=False,
        codec=None,
        guidance=None,
        **blocks["voices"],
    )
    assert SpeechSpec.from_config(config).tasks[0].takes_voice


def test_the_guidance_shown_is_that_of_the_random_checkpoint(tmp_path):
    shown = json_blocks()["guidance"]
    folder = random_checkpoint.write_random_speech_lm(tmp_path, codec=None)
    assert shown == json.loads((folder / "config.json").read_text())["guidance"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_snippet_is_run_or_says_why_not():
    left = [s for page in PAGES for s in snippets(page) if not s.test]
    for snippet in left:
        assert any(
            snippet.page == page and snippet.text.startswith(begin) for page, begin in NOT_RUN
        ), f"no test runs {snippet.page}:{snippet.line}"
    assert len(left) == len(NOT_RUN)


def test_make_demo_says_what_the_readme_says():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "demo: sentence := please open blue door\n" in makefile
    assert '\t@$(bin)/vllm speak "$(sentence)" --output demo.wav\n' in makefile
    assert "\t@$(bin)/vllm transcribe demo.wav\n" in makefile


@pytest.mark.slow
@pytest.mark.parametrize(
    "snippet",
    [s for page in PAGES for s in snippets(page) if s.test == "alone"],
    ids=lambda snippet: f"{snippet.page}:{snippet.line}",
)
def test_a_python_snippet_runs_as_it_stands(snippet, tmp_path):
    # In a file, as a reader would: engines of processes of their own import it again.
    (tmp_path / "snippet.py").write_text(snippet.text, encoding="utf-8")
    result = run([sys.executable, "snippet.py"], tmp_path)
    for line in re.findall(r"^# (\d.*)|  # (Context.*)", snippet.text, re.MULTILINE):
        assert "".join(line) in result.stdout
    if snippet.page == "README.md":
        samples, rate = soundfile.read(tmp_path / "out.wav")
        assert rate == 16000 and len(samples) >= 20 * 320
        assert result.stdout.rstrip().endswith("please open blue door")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/api.md", "docs/guidance.md"])
def test_the_errors_shown_are_those_of_the_code(page, tmp_path):
    shown = [s.text for s in snippets(ROOT / page) if s.language == ">>>"]
    pairs = re.findall(r"^>>> (.+)\n(\w+: .+)$", "\n".join(shown), re.MULTILINE)
    assert len(pairs) >= 2
    first = next(s.text for s in snippets(ROOT / page) if s.language == "python")
    (tmp_path / "snippet.py").write_text(f"{first}\n{TRY_EACH}", encoding="utf-8")
    told = run([sys.executable, "snippet.py", json.dumps([code for code, _ in pairs])], tmp_path)
    assert json.loads(told.stdout.splitlines()[-1]) == [error for _, error in pairs]


TRY_EACH = """
    import json, sys

    told = []
    for code in json.loads(sys.argv[1]):
        try:
            eval(code)
        except ValueError as error:
            told.append(f"ValueError: {error}")
    print(json.dumps(told))
"""


@pytest.mark.slow
def test_the_readme_s_server_and_client(tmp_path):
    """The commands and the client of "Serving", but for the port."""
    port = free_port()
    found = [s for s in snippets(ROOT / "README.md") if s.test == "server"]
    shell, client = (s.text.replace("localhost:8000", f"localhost:{port}") for s in found)
    serve, curl = shell.split("\n", 1)
    assert serve == "vllm serve unison-default" and curl.startswith("curl ")
    main = [sys.executable, "-m", "vllm.entrypoints.cli.main", *serve.split()[1:]]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*main, "--port", str(port)],
            cwd=tmp_path,
            env=plain_environment(),
            stderr=log,
            stdout=log,
        )
    try:
        wait_until_up(Server(f"http://127.0.0.1:{port}", process, tmp_path / "server.log"))
        run(["bash", "-euc", curl], tmp_path)
        assert soundfile.info(tmp_path / "door.wav").frames >= 20 * 320
        (tmp_path / "door.wav").unlink()
        (tmp_path / "client.py").write_text(client, encoding="utf-8")
        heard = run([sys.executable, "client.py"], tmp_path)
        assert heard.stdout == "please open blue door\n"
        example = [sys.executable, str(ROOT / "examples/openai_client.py")]
        shown = run([*example, f"http://localhost:{port}"], tmp_path).stdout.splitlines()
        assert len(shown) >= 2 and shown[-1] == "heard: please open blue door"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/default_model.md", "vllm/unison/default_model/README.md"])
def test_the_default_model_says_what_its_pages_show(page, tmp_path):
    (text,) = [s.text for s in snippets(ROOT / page) if s.test == "model"]
    main = f"{sys.executable} -m vllm.entrypoints.cli.main"
    tools = f'vllm() {{ {main} "$@"; }}\n'
    heard = run(["bash", "-euc", tools + text], tmp_path)
    assert heard.stdout.rstrip().endswith("please open blue door")
