# SPDX-License-Identifier: Apache-2.0
"""A folder whose weights audiocraft has saved makes the same music."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine.musicgen.cases import GREEDY, MusicCase, codes_of, generate
from tests.engine.musicgen.reference import MusicReference
from tests.engine.streams.conftest import open_engine
from tests.support.audiocraft import audiocraft_names, write_audiocraft
from vllm.unison.formats.musicgen import read_musicgen
from vllm.unison.formats.musicgen_weights import LANGUAGE_MODEL_FILE, read_musicgen_weights

CASE = MusicCase("lo fi beat", 20, GREEDY | {"guidance_scale": 3.0})


@pytest.fixture
def audiocraft(
    published: Callable[[str], Path], music: Callable[[str], MusicReference], tmp_path: Path
) -> Path:
    """As the published repositories have it, without safetensors; T5 is in a folder of its own."""
    folder, encoder = tmp_path / "model", tmp_path / "t5"
    shutil.copytree(published("mono"), folder)
    tensors = dict(read_musicgen_weights(folder, read_musicgen(folder)))
    (folder / "model.safetensors").unlink()
    write_audiocraft(folder, *audiocraft_names(tensors))
    music("mono").model.text_encoder.save_pretrained(encoder)
    config = json.loads((folder / "config.json").read_text())
    config["text_encoder"]["_name_or_path"] = str(encoder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_codes_and_samples_are_the_same(
    audiocraft: Path, music: Callable[[str], MusicReference]
) -> None:
    with open_engine(audiocraft) as llm:
        (output,) = generate(llm, [CASE])
    codes, samples = music("mono").generate(CASE.text, CASE.num_frames, 3.0)
    assert np.array_equal(codes_of(output), codes)
    audio = output.outputs[0].audio
    np.testing.assert_allclose(audio.samples, samples, atol=1e-5)


def test_a_text_encoder_that_is_not_there_is_named(audiocraft: Path) -> None:
    shutil.rmtree(audiocraft.parent / "t5")
    with (
        pytest.raises(ValueError, match=r"text_encoder\._name_or_path, '.*t5'"),
        open_engine(audiocraft),
    ):
        pass


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_that_is_not_weights_is_refused_and_not_executed(
    audiocraft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    monkeypatch.chdir(audiocraft.parent)
    (audiocraft / LANGUAGE_MODEL_FILE).write_bytes(pickle.dumps(_Bomb()))
    with (
        pytest.raises(ValueError, match=f"{LANGUAGE_MODEL_FILE} is not a file of weights"),
        open_engine(audiocraft),
    ):
        pass
    assert not Path("exploded").exists()


def test_a_truncated_checkpoint_is_refused(
    published: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(published("mono"), folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="is not a whole file of tensors"), open_engine(folder):
        pass
