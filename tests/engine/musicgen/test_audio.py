# SPDX-License-Identifier: Apache-2.0
"""The audio of mono and stereo models: streamed it is that of the end, by the mono codec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.audio.streams import SMALL_CHUNKS, assert_stream_is, num_pieces, stream
from tests.engine.musicgen.cases import DRAWN, LONG, SHORT, MusicCase
from tests.engine.streams.conftest import open_engine
from tests.support.musicgen import SAMPLE_RATE
from vllm.sampling_params import RequestOutputKind
from vllm.unison.audio_decoder.pipeline import TOLERANCE
from vllm.unison.codecs.registry import load_codec_part

CASES = [
    MusicCase(SHORT, 40, DRAWN | {"seed": 1, "guidance_scale": 3.0}),
    MusicCase(LONG, 23, DRAWN | {"seed": 2}),
    MusicCase("jazz", 1, DRAWN | {"seed": 3}),
]


@pytest.mark.parametrize(("name", "channels"), [("mono", 1), ("stereo", 2)])
def test_streams_are_the_audio_of_the_end(
    name: str, channels: int, published: Callable[[str], Path]
) -> None:
    mono = load_codec_part(str(published(name)), "audio_encoder", num_codebooks=4)
    with open_engine(published(name), additional_config=SMALL_CHUNKS) as llm:
        prompts, params = [c.prompt for c in CASES], [c.params for c in CASES]
        whole = llm.generate(prompts, params, use_tqdm=False)
        for case, output in zip(CASES, whole, strict=True):
            audio = output.outputs[0].audio
            assert audio is not None
            assert audio.codes.shape == (case.num_frames, 4 * channels)
            assert (audio.num_channels, audio.sample_rate) == (channels, SAMPLE_RATE)
            assert audio.seconds == pytest.approx(case.num_frames / 50)
            by_channel = audio.samples.reshape(-1, channels)
            for channel in range(channels):
                codes = torch.from_numpy(audio.codes[:, channel::channels].copy())
                heard = mono.decode(codes).numpy()
                assert heard.shape == by_channel[:, channel].shape
                assert np.abs(heard - by_channel[:, channel]).max() <= TOLERANCE
        for kind in (RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE):
            streams = [outputs[0] for outputs in stream(llm, CASES, kind)]
            for pieces, request in zip(streams, whole, strict=True):
                assert_stream_is(pieces, request.outputs[0], kind)
                assert {p.audio.num_channels for p in pieces if p.audio is not None} == {channels}
            assert num_pieces(streams[0]) >= 5
