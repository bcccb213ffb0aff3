# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is what the code accepts."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.multistream import published_layouts
from vllm.multistream import random_checkpoint
from vllm.multistream.layout import StreamLayout
from vllm.multistream.spec import SpeechSpec

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_parse(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        ast.parse(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/api.md", "docs/codecs.md", "docs/guidance.md"])
def test_the_first_python_example_runs(page, tmp_path):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    noise = 0.1 * np.random.default_rng(1).standard_normal((8000, 2))
    soundfile.write(tmp_path / "voice.wav", noise, 24000)
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", found[1]],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")[-2000:]
    for line in re.findall(r"^# (.*)", found[1], re.MULTILINE):
        assert line in result.stdout.decode(errors="replace")
    if page == "README.md":
        samples, rate = soundfile.read(tmp_path / "out.wav")
        assert rate == 16000 and len(samples) >= 20 * 320
