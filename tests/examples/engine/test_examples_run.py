# SPDX-License-Identifier: Apache-2.0
"""The examples, run: most in one engine in this process, one as its user would.

`openai_client.py` runs in tests/entrypoints/test_readme.py, where such a server is up.
"""

from __future__ import annotations

import gc
import inspect
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.support.demonstration import SECOND, SENTENCE

FOLDER = Path(__file__).parents[3] / "examples"
SAMPLES_PER_FRAME = 640

pytestmark = pytest.mark.slow

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs an example in a folder of all examples and returns what it prints."""
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory

    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    patch.chdir(tmp_path_factory.mktemp("examples"))
    made = vllm.LLM
    engine = made("unison-default", enforce_eager=True, use_tqdm_on_load=False)

    def shared(*arguments: Any, **options: Any) -> Any:
        inspect.signature(made).bind(*arguments, **options)
        assert arguments == ("unison-default",) and options == {"enforce_eager": True}
        return engine

    def run(name: str, *arguments: str) -> str:
        with pytest.MonkeyPatch.context() as once:
            once.setattr(vllm, "LLM", shared)
            once.setattr(sys, "argv", [name, *arguments])
            printed: list[str] = []
            once.setattr("builtins.print", lambda *said: printed.append(" ".join(map(str, said))))
            runpy.run_path(str(FOLDER / name), run_name="__main__")
            return "\n".join(printed)

    yield run
    patch.undo()
    engine.llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="module")
def spoken(run: Run) -> str:
    """What offline_speech.py says; its files are there for the other examples."""
    return run("offline_speech.py")


def test_offline_speech(spoken: str) -> None:
    found = re.findall(r"^(\w+\.wav): [\d.]+ s, (\d+) frames$", spoken, re.MULTILINE)
    assert [name for name, _ in found] == ["road.wav", "shop.wav"]
    for name, frames in found:
        assert soundfile.info(name).frames == int(frames) * SAMPLES_PER_FRAME >= 16000 // 2


@pytest.mark.usefixtures("spoken")
def test_offline_transcription(run: Run) -> None:
    door, horse = run("offline_transcription.py", "road.wav", "shop.wav").splitlines()
    assert door == f"road.wav: {SENTENCE}"
    assert horse == f"shop.wav: {SECOND}"
    assert run("offline_transcription.py") == f"road.wav: {SENTENCE}"


@pytest.mark.usefixtures("spoken")
def test_an_audio_prompt_is_continued(run: Run) -> None:
    run("audio_prompt.py", "road.wav")
    door, _ = soundfile.read("road.wav")
    continued, _ = soundfile.read("continued.wav")
    assert abs(continued[: len(door)] - door).max() < 1e-4
    assert len(continued) - len(door) >= 25 * SAMPLES_PER_FRAME


def test_guidance_makes_a_difference(run: Run) -> None:
    run("guided_speech.py")
    files = [Path(name).read_bytes() for name in ("plain.wav", "guided.wav", "negative.wav")]
    assert len(set(files)) == 3 and min(map(len, files)) > 16000


def test_a_mixed_batch(run: Run) -> None:
    heard, *said = run("mixed_batch.py").splitlines()
    assert heard == f"heard: {SENTENCE}"
    assert [line.split(",")[0] for line in said] == [
        f"said: {SECOND}",
        f"said: {SENTENCE}",
    ]


@pytest.mark.nightly
def test_a_random_checkpoint_as_its_user_runs_it(tmp_path: Path) -> None:
    """With an engine in a process of its own, which imports the file again."""
    drop = {"VLLM_ENABLE_V1_MULTIPROCESSING"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "random_checkpoint.py")],
        cwd=tmp_path,
        env=kept | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The last of 8 streams runs 7 steps behind.
    assert done.stdout.count("20 frames of 8 codes in 27 steps\n") == 2
