# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is what the code accepts; `engine` runs its snippets."""

from __future__ import annotations

import ast
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from tests.examples.snippets import ALL, PAGES, ROOT
from tests.support import published_layouts
from tests.support.demonstration import SENTENCE
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.testing import random_checkpoint

NOT_RUN = {
    ("README.md", "make demo"): "builds in the checkout; test_make_demo_says_what_the_readme_says",
    ("docs/acoustic_decoding.md", "vllm serve MODEL"): "tests/engine/audio has such engines",
    ("docs/default_model.md", "python examples/train_default_model/background"): "takes hours",
    ("docs/default_model.md", "python examples/train_default_model/ship"): "takes hours",
    ("docs/default_model.md", "python examples/train_default_model/synthesize"): "takes hours",
    ("docs/default_model.md", "python benchmarks/benchmark_numerics.py"): "takes half an hour",
}
"""How snippets begin that no test runs, and why; keep it short."""


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
    left = [snippet for snippet in ALL if not snippet.test]
    for snippet in left:
        assert any(
            snippet.page == page and snippet.text.startswith(begin) for page, begin in NOT_RUN
        ), f"no test runs {snippet.page}:{snippet.line}"
    assert len(left) == len(NOT_RUN)
    pages_of_the_model = ["docs/default_model.md", "vllm/unison/default_model/README.md"]
    assert [snippet.page for snippet in ALL if snippet.test == "model"] == pages_of_the_model


def test_make_demo_says_what_the_readme_says():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\nsentence := {SENTENCE}\n" in makefile
    assert '\t@$(bin)/vllm speak "$(sentence)" --output demo.wav\n' in makefile
    assert "\t@$(bin)/vllm transcribe demo.wav\n" in makefile


@pytest.mark.parametrize(
    "snippet", [s for s in ALL if s.language == "python"], ids=lambda s: f"{s.page}:{s.line}"
)
def test_a_snippet_with_an_engine_can_be_imported_again(snippet):
    """As the engine's process does, which must not start an engine of its own."""
    at_import = [
        node
        for node in ast.parse(snippet.text).body
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'")
    ]
    called = {
        ast.unparse(node.func)
        for top in at_import
        for node in ast.walk(top)
        if isinstance(node, ast.Call)
    }
    assert not {name for name in called if "LLM" in name or name == "asyncio.run"}
