# SPDX-License-Identifier: Apache-2.0
"""Audio longer than a window: what its requests make together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.engine.musicgen.cases import DRAWN, GREEDY, MusicCase, codes_of, noise
from tests.engine.musicgen.reference import Lane, MusicReference, Sampling
from tests.engine.streams.conftest import open_engine
from tests.support.musicgen import SAMPLE_RATE
from vllm import LLM, SamplingParams
from vllm.outputs import CompletionOutput
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.prompts import stream_prompt_builder
from vllm.unison.frontend.windows import window_seed
from vllm.unison.messages.streams import AudioOutput

LENGTH, STRIDE = 60, 25
"""Frames of a window, which the positions bound here, and by which it moves on."""
TEXT = "warm piano"


@pytest.fixture(scope="module")
def engine(published: Callable[[str], Path]) -> Iterator[LLM]:
    with open_engine(published("mono"), max_model_len=LENGTH + 4) as llm:
        yield llm


def asked(seconds: float, clip: NDArray[np.float32] | None = None, **options: Any) -> Any:
    kwargs = {"duration": seconds, "extend_stride": STRIDE / 50} | options
    prompt: dict[str, Any] = {"prompt": TEXT, "mm_processor_kwargs": kwargs}
    if clip is not None:
        prompt["multi_modal_data"] = {"audio": (clip, SAMPLE_RATE)}
    return prompt


def audio_of(completion: CompletionOutput) -> AudioOutput:
    assert completion.audio is not None
    return completion.audio


def by_hand(
    reference: MusicReference,
    lanes: list[Lane],
    num_new: int,
    given: NDArray[np.int64] | None = None,
    sampling: Callable[[int], Sampling | None] = lambda index: None,
) -> NDArray[np.int64]:
    """The new frames, as audiocraft's loop makes them window by window."""
    known = np.empty((0, reference.num_streams), np.int64) if given is None else given
    num_given, total = len(known), len(known) + num_new
    offset = index = 0
    while len(known) < total:
        end = min(offset + LENGTH, total)
        prompt = known[offset:] if len(known) > offset else None
        made = reference.loop(lanes, end - len(known), sampling(index), prompt)
        known = np.concatenate([known, made])
        offset, index = offset + STRIDE, index + 1
    return known[num_given:]


def samples_of(reference: MusicReference, codes: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    values = torch.from_numpy(codes.astype(np.int64).T)[None, None]
    with torch.inference_mode():
        decoded = reference.model.audio_encoder.decode(values, [None]).audio_values
    found: NDArray[np.float32] = decoded[0, 0].numpy()
    return found


def test_windows_go_on_from_each_other(engine: LLM, music: Callable[[str], MusicReference]) -> None:
    """Long ones and short ones in one call; the audio is decoded as a whole."""
    guided = SamplingParams(guidance_scale=3.0, **GREEDY)
    plain = SamplingParams(**GREEDY)
    clip = noise(11, seed=4)
    long, short, continued = engine.generate(
        [asked(2.6, task="generate"), MusicCase(TEXT, 9).prompt, asked(1.7, clip)],
        [guided, SamplingParams(max_tokens=9, **GREEDY), plain],
        use_tqdm=False,
    )
    reference = music("mono")
    expected = by_hand(reference, [(3.0, TEXT), (-2.0, None)], 130)
    assert np.array_equal(codes_of(long), expected)
    audio = audio_of(long.outputs[0])
    np.testing.assert_allclose(audio.samples, samples_of(reference, expected), atol=1e-5)
    # Ids of stream 0, and the fills of each window's last steps.
    assert len(long.outputs[0].token_ids) == 130 + 4 * 3
    assert np.array_equal(codes_of(short), reference.loop([(1.0, TEXT)], 9))
    given = reference.codes_of(clip)
    assert np.array_equal(codes_of(continued), by_hand(reference, [(1.0, TEXT)], 85, given))


def test_each_window_has_random_numbers_of_its_own(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    params = SamplingParams(n=2, seed=7, max_tokens=100, **DRAWN)
    prompt: Any = {"prompt": TEXT}
    kwargs = {"extend_stride": STRIDE / 50}
    (output,) = engine.generate(prompt, params, use_tqdm=False, mm_processor_kwargs=kwargs)
    assert params.seed == 7 and params.n == 2
    for index, completion in enumerate(output.outputs):

        def sampling(window: int, seed: int = 7 + index) -> Sampling:
            return Sampling(window_seed(seed, window), DRAWN["temperature"], DRAWN["top_k"])

        expected = by_hand(music("mono"), [(1.0, TEXT)], 100, sampling=sampling)
        assert completion.index == index and completion.finish_reason == "length"
        assert np.array_equal(audio_of(completion).codes, expected)
    first, second = (audio_of(completion).codes for completion in output.outputs)
    assert not np.array_equal(first, second)


def test_what_fits_a_window_is_one_request(engine: LLM) -> None:
    one, plain = engine.generate(
        [asked(1.2), MusicCase(TEXT, LENGTH).prompt],
        [SamplingParams(**GREEDY), SamplingParams(max_tokens=LENGTH, **GREEDY)],
        use_tqdm=False,
    )
    assert np.array_equal(codes_of(one), codes_of(plain))
    samples = [audio_of(output.outputs[0]).samples for output in (one, plain)]
    assert np.array_equal(samples[0], samples[1])


@pytest.mark.parametrize(
    ("prompt", "fields", "message"),
    [
        (asked(2, extend_stride=1.2), {}, "extend_stride must be shorter than a window, 1.2 s, "),
        (asked(2, extend_stride=0), {}, "extend_stride must be a number of seconds, at least 0.02"),
        (asked(2, extend_stride="1"), {}, "extend_stride must be a number of seconds, at least 0"),
        (asked(2, duration=None), {}, "extend_stride needs either duration or max_tokens"),
        (asked(2), {"max_tokens": 9}, "extend_stride needs either duration or max_tokens"),
        (asked(2, task="sing"), {}, r"task must be one of \['continue', 'generate'\], not 'sing'"),
        (asked(2, task="continue"), {}, "task 'continue' needs text and audio, but the request "),
        (asked(3601), {}, "duration must be at most 3600 s with extend_stride"),
        (asked(0), {}, "duration must be a number of seconds, at least 0.02, not 0"),
        (asked(2), {"guidance_scale": 3.0, "guidance_interval": (0, 9)}, "guidance_interval is "),
        (asked(2) | {"multi_modal_data": {"codes": [[1, 2]]}}, {}, "codes must be integers of "),
        (asked(2) | {"multi_modal_data": {"codes": [[0, 0, 64, 0]]}}, {}, "codes must be in "),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(
    engine: LLM, prompt: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{message}"):
        engine.generate(prompt, SamplingParams(**fields), use_tqdm=False)


def test_codes_are_a_prompt_as_their_clip_is(engine: LLM) -> None:
    params = SamplingParams(max_tokens=12, **GREEDY)
    clip = MusicCase(TEXT, 12, clip=noise(11, seed=4)).prompt
    (heard,) = engine.generate(clip, params, use_tqdm=False)
    builder = stream_prompt_builder(engine.renderer)
    assert builder is not None
    codes = builder.codes_of(clip["multi_modal_data"])
    given: Any = {"prompt": TEXT, "multi_modal_data": {"codes": codes}}
    (read,) = engine.generate(given, params, use_tqdm=False)
    assert heard.prompt_token_ids == read.prompt_token_ids and len(codes) == 11
    assert np.array_equal(codes_of(heard), codes_of(read))
