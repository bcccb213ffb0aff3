# SPDX-License-Identifier: Apache-2.0
"""A clip in an OpusLM's prompt: units of speech beside the codec's codes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import opuslm, xeus
from tests.support.espnet_dac import write_espnet_dac
from vllm.transformers_utils.configs.opuslm import OpusLMConfig
from vllm.unison.codecs import speech_units
from vllm.unison.frontend.prompts import PromptBuilder
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.opuslm_model import engine_folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache directory, where folders are made for the engine."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = opuslm.write_opuslm(tmp_path_factory.mktemp("opuslm") / "model")
    write_espnet_dac(made / "codec")
    return made


def _spec(folder: Path) -> SpeechSpec:
    made = engine_folder(folder)
    assert made is not None
    return OpusLMConfig.from_pretrained(made).speech_spec(str(made))


def _recognition(spec: SpeechSpec, audio: Any) -> Any:
    return PromptBuilder(spec).build({"prompt_token_ids": [], "multi_modal_data": {"audio": audio}})


def test_units_are_on_stream_0_and_codes_beside_them(folder: Path, tmp_path: Path) -> None:
    published = Path(shutil.copytree(folder, tmp_path / "with_units"))
    xeus.copy_model(published / "xeus" / "model")
    spec = _spec(published)
    samples = xeus.expected()["samples"]
    built = _recognition(spec, (samples, 16000))
    units = [opuslm.FIRST_UNIT + unit for unit in xeus.expected()["units"]]
    begin, pads = [opuslm.END, opuslm.ASR, opuslm.BEGIN_AUDIO], [opuslm.PAD] * 8
    assert built["prompt_token_ids"] == [*begin, *units, *pads, opuslm.BEGIN_TEXT]
    # Stream k has its codes k steps later.
    auxiliary = np.asarray(built["auxiliary_token_ids"])
    for k in range(1, 9):
        first = opuslm.FIRST_CODE + (k - 1) * opuslm.NUM_CODES
        has_code = (auxiliary[:, k - 1] >= first) & (auxiliary[:, k - 1] < first + opuslm.NUM_CODES)
        assert np.flatnonzero(has_code).tolist() == list(range(3 + k, 3 + k + len(units)))


def test_without_the_encoder_a_clip_may_be_given_as_its_codes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(folder)
    assert spec.speech_units == "espnet/xeus"
    monkeypatch.setattr(speech_units, "snapshot_download", xeus.no_download)
    with pytest.raises(ValueError, match=r"audio: the encoder of speech units, 'espnet/xeus'"):
        _recognition(spec, (xeus.expected()["samples"], 16000))
    built = _recognition(spec, {"codes": opuslm.clip_codes(4, seed=0)})
    units = [frame[0] for frame in opuslm.clip_ids(4, seed=0)]
    assert built["prompt_token_ids"][3:7] == units
