# SPDX-License-Identifier: Apache-2.0
"""The code on the pages of the documentation, and how it is run."""

from __future__ import annotations

import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").glob("**/*.md"),
        ROOT / "examples/README.md",
        ROOT / "vllm/unison/default_model/README.md",
    ]
)

COMMANDS = ("vllm ", "python ", "python3 ", "pip ", "make ", "curl ", "git ")
ELSEWHERE = {
    "docs/batch.md": "tests/entrypoints/batch runs these commands on small models",
    "docs/scaling.md": "tests/entrypoints/ray_cluster serves a small model so",
    "docs/building.md": "tests/fork does these steps",
    "docs/benchmarks.md": "take hours",
    "docs/releases.md": "tests/fork and tests/releases do these steps",
    "docs/models/higgs_audio_v2.md": "tests/engine/higgs_audio_v2 asks small models so",
    "docs/models/higgs_tts_3.md": "tests/engine/higgs3 asks small models so",
    "docs/models/bagpiper.md": "tests/engine/bagpiper asks a small model so",
    "docs/models/musicgen.md": "tests/engine/musicgen and tests/entrypoints ask small models so",
    "docs/models/opuslm.md": "tests/engine/opuslm asks small models so",
    "docs/gpu.md": "needs a GPU; tests/benchmarks/test_gpu_script.py",
}


@dataclass(frozen=True)
class Snippet:
    """A piece of code of a page.

    Attributes:
        page: its path in the repository.
        line: of the page, from 1.
        language: "python", "sh" (also commands that are only indented) or ">>>".
        text: without indentation.
        test: what runs it: "here" (an engine in the tests' process), "alone" (a process of its
            own), "errors" (what its page's first snippet left), "server" (tests that have one),
            "model" (the packaged model's commands) or "" (none).
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
        # Most readers' first one, and an engine that cannot be in the tests' process.
        return "alone" if page == "README.md" or "AsyncLLM" in code else "here"
    return "model" if "vllm speak" in code and "vllm transcribe" in code else ""


ALL = [snippet for page in PAGES for snippet in snippets(page)]


def plain_environment() -> dict[str, str]:
    """Without what the tests' settings make easier."""
    ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "OPENAI_API_KEY", "VLLM_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    ours_too = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
    return kept | ours_too | {"HF_HUB_OFFLINE": "1"}
