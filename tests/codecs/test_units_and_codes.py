# SPDX-License-Identifier: Apache-2.0
"""Units and codes of a clip side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import xeus
from vllm.unison.codecs import speech_units
from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.speech_units import SpeechUnits, load_speech_units
from vllm.unison.codecs.unit_encoder import FrameEncoder, frame_encoder_of
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import CodecSource, SpeechSpec


@pytest.fixture(scope="module")
def units() -> SpeechUnits:
    return load_speech_units(str(xeus.FOLDER))


class _CountingCodec(Codec):
    """Codes that count frames, and books."""

    def __init__(self, sample_rate: int = 16000, samples_per_frame: int = 320) -> None:
        super().__init__(
            sample_rate=sample_rate,
            samples_per_frame=samples_per_frame,
            num_codebooks=2,
            codebook_size=1024,
            device=torch.device("cpu"),
        )

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        frames = torch.arange(self.num_frames(len(samples)))
        return torch.stack((frames, frames + 100), dim=1)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("num_samples", [400, 640, 719, 720, 10000])
def test_a_frame_has_a_unit_and_codes_of_the_same_place(
    units: SpeechUnits, num_samples: int
) -> None:
    clip = xeus.clip()[:num_samples]
    encoder = FrameEncoder(units, _CountingCodec())
    assert (encoder.sample_rate, encoder.num_channels) == (16000, 1)
    frames = encoder.encode(clip)
    # Convolutions of samples see 80 samples more than a frame has.
    assert frames.dtype == torch.int32 and frames.shape == ((num_samples - 80) // 320, 3)
    assert torch.equal(frames[:, 0], units.units(clip))
    assert frames[:, 1].tolist() == list(range(len(frames)))
    assert frames[:, 2].tolist() == list(range(100, 100 + len(frames)))


def test_clips_that_are_too_short_are_refused(units: SpeechUnits) -> None:
    message = r"audio must be at least 25 ms long, not 24\.9375 ms"
    with pytest.raises(ValueError, match=message):
        FrameEncoder(units, _CountingCodec()).encode(xeus.clip()[:399])


def test_a_codec_of_another_frame_rate_is_refused(units: SpeechUnits) -> None:
    FrameEncoder(units, _CountingCodec(24000, 480))
    with pytest.raises(ValueError, match=r"codec must have 50 frames per second.* not 75"):
        FrameEncoder(units, _CountingCodec(24000, 320))


def _spec(num_units: int = xeus.NUM_UNITS, **changes: Any) -> SpeechSpec:
    begin = 2 + num_units
    layout = StreamLayout.from_dict(
        {
            "delays": [0, 1, 2],
            "vocabulary_size": begin + 2048,
            "slices": [[2, begin], [begin, begin + 1024], [begin + 1024, begin + 2048]],
            "pad_token_ids": 0,
            "codebook_streams": [1, 2],
            "phases": [
                {
                    "name": "audio",
                    "kind": "audio",
                    "transitions": [{"token": 1, "to": "end"}],
                }
            ],
        }
    )
    return SpeechSpec(layout=layout, codec=CodecSource("codec"), **changes)


def _encoder_of(spec: SpeechSpec) -> Codec | FrameEncoder:
    return frame_encoder_of(spec, lambda spec, device: _CountingCodec())


def test_units_lie_in_the_models_folder_or_elsewhere(tmp_path: Path, units: SpeechUnits) -> None:
    xeus.copy_model(tmp_path / "encoder")
    expected = FrameEncoder(units, _CountingCodec()).encode(xeus.clip())
    places: list[dict[str, Any]] = [
        {"speech_units": "encoder", "model_path": str(tmp_path)},
        {"speech_units": str(xeus.FOLDER), "model_path": str(tmp_path)},
    ]
    for changes in places:
        encoder = _encoder_of(_spec(**changes))
        assert torch.equal(encoder.encode(xeus.clip()), expected)


def test_streams_that_nothing_gives_ids_for_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_units, "snapshot_download", xeus.no_download)
    instead = r".*; or give the clip as its codes of all streams, {\"codes\": \[num_frames, 3\]}"
    with pytest.raises(ValueError, match=r"no ids for streams \[0\], and .*names no" + instead):
        _encoder_of(_spec())
    with pytest.raises(ValueError, match=r"audio: the encoder of .* units, 'no/one'" + instead):
        _encoder_of(_spec(speech_units="no/one"))
    first = _spec(speech_units=str(xeus.FOLDER))
    layout = replace(first.layout, codebook_streams=(2,))
    with pytest.raises(ValueError, match=r"no ids for streams \[0, 1\]"):
        _encoder_of(replace(first, layout=layout))


def test_another_number_of_units_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must give 41 units, as stream 0 has, not 40"):
        _encoder_of(_spec(41, speech_units=str(xeus.FOLDER)))
