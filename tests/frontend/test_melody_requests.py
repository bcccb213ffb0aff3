# SPDX-License-Identifier: Apache-2.0
"""Requests for a MusicGen Melody model, through upstream's front end up to what the engine gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.frontend.test_musicgen_requests import FrontEnd
from tests.support.musicgen import (
    CHROMA_LENGTH,
    SAMPLE_RATE,
    register_architecture,
    t5_tokenizer,
    write_musicgen,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.speech.parameters import SpeechInput, plan_request
from vllm.sampling_params import SamplingParams
from vllm.unison.conditioning.chroma import ChromaExtractor
from vllm.unison.formats.musicgen_spec import musicgen_spec
from vllm.unison.frontend.defaults import task_defaults
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.messages.conditioning import PrefixInput
from vllm.unison.model.layout import LayoutError
from vllm.unison.model.spec import MelodySpec, multistream_spec
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

FILL, POSITIONS = 64, 256
TEXT = "lo-fi beat"
IDS = t5_tokenizer().encode(TEXT)
NULL = bytes(CHROMA_LENGTH)
NOISE = (0.1 * np.random.default_rng(5).standard_normal(9 * 512)).astype(np.float32)


@pytest.fixture(scope="module")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    folder = tmp_path_factory.mktemp("melody")
    write_musicgen(folder, melody=True, max_positions=POSITIONS)
    with pytest.MonkeyPatch.context() as patch:
        register_architecture(patch)
        arguments = EngineArgs(model=str(folder), dtype="float32", enforce_eager=True)
        yield FrontEnd(arguments.create_engine_config())


def following(audio: Any = (NOISE, SAMPLE_RATE), **options: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt": TEXT, "multi_modal_data": {"audio": audio}}
    return prompt | ({"mm_processor_kwargs": options} if options else {})


def heard(front_end: FrontEnd, samples: np.ndarray) -> bytes:
    """The bins of a clip, repeated by hand."""
    spec = multistream_spec(front_end.config.model_config)
    assert spec is not None and spec.melody is not None
    bins = ChromaExtractor(spec.melody).encode(torch.from_numpy(samples))[:, 0].tolist()
    return bytes((bins * CHROMA_LENGTH)[:CHROMA_LENGTH])


def test_a_prompt_has_placeholders_and_the_start_column(front_end: FrontEnd) -> None:
    for prompt in (TEXT, {"prompt_token_ids": IDS}):
        request = front_end.request(prompt)
        num_prefix = CHROMA_LENGTH + len(IDS)
        assert request.prompt_token_ids == [FILL] * (num_prefix + 1)
        assert request.streams.encoder_input == PrefixInput(NULL, IDS, len(IDS))
        assert request.streams.encoder_input.num_positions == num_prefix
        assert request.streams.segment_start == num_prefix + 1
        steps = request.streams.auxiliary_ids
        assert (steps[: num_prefix + 2] == [[FILL] * 3] * num_prefix + [[FILL] * 3] * 2).all()
        assert steps[num_prefix + 2 :].tolist() == [[-1, FILL, FILL], [-1, -1, FILL]]


def test_audio_is_a_melody(front_end: FrontEnd) -> None:
    """Repeated where it is short, cut where it is long, and mixed down."""
    long = np.tile(NOISE, 4)
    stereo = np.stack([2 * NOISE, 0 * NOISE])
    for audio, samples in (
        ((NOISE, SAMPLE_RATE), NOISE),
        ((long, SAMPLE_RATE), long),
        ((stereo, SAMPLE_RATE), NOISE),
        (NOISE, NOISE),
    ):
        request = front_end.request(following(audio))
        expected = heard(front_end, samples)
        assert request.streams.encoder_input == PrefixInput(expected, IDS, len(IDS))
        assert len(request.prompt_token_ids) == CHROMA_LENGTH + len(IDS) + 1
        assert len(set(expected)) > 1
    assert len(NOISE) // 512 + 1 < CHROMA_LENGTH < len(long) // 512 + 1


def test_a_clip_of_another_rate_is_resampled(front_end: FrontEnd) -> None:
    time = np.arange(2 * SAMPLE_RATE) / (2 * SAMPLE_RATE)
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    request = front_end.request(following((tone, 2 * SAMPLE_RATE)))
    assert set(request.streams.encoder_input.chroma) == {9}


def test_the_null_lane_has_no_text_and_no_melody(front_end: FrontEnd) -> None:
    request = front_end.request(following(), guidance_scale=3.0)
    (lane,) = request.guidance.lanes
    assert lane.encoder_input == PrefixInput(NULL, [], len(IDS))
    assert lane.prompt_token_ids == request.prompt_token_ids
    num_prompt = len(request.prompt_token_ids)
    np.testing.assert_array_equal(lane.auxiliary_ids, request.streams.auxiliary_ids[:num_prompt])


def test_a_negative_prompt_has_a_prefix_of_its_own_length(front_end: FrontEnd) -> None:
    shorter, longer = t5_tokenizer().encode("beat"), t5_tokenizer().encode("slow piano and drums")
    assert len(shorter) < len(IDS) < len(longer)
    lanes: list[dict[str, Any]] = [
        {"weight": 3.0}, {"weight": -1.0, "prompt": "beat"},
        {"weight": -0.5, "prompt_token_ids": longer}, {"weight": -0.5},
    ]  # fmt: skip
    made = front_end.request(following(), guidance_lanes=lanes).guidance.lanes
    expected = [
        PrefixInput(NULL, shorter, len(shorter)),
        PrefixInput(NULL, longer, len(longer)),
        PrefixInput(NULL, [], len(IDS)),
    ]
    assert [lane.encoder_input for lane in made] == expected
    for lane in made:
        num_prompt = lane.encoder_input.num_positions + 1
        assert lane.prompt_token_ids == [FILL] * num_prompt
        assert lane.auxiliary_ids.tolist() == [[FILL] * 3] * num_prompt


def test_a_lane_that_has_no_room_is_refused(front_end: FrontEnd) -> None:
    fields: dict[str, Any] = {"guidance_scale": 3.0, "negative_prompt_token_ids": [5] * 100}
    with pytest.raises(InvalidRequestError, match=r"^negative_prompt_token_ids has 122 tokens; "):
        front_end.request(TEXT, max_tokens=150, **fields)
    params = front_end.request(TEXT, SamplingParams(**fields)).sampling_params
    assert params.max_tokens == POSITIONS - 122 - 3


REFUSALS: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "prompt must hold text, not ''"),
    (following() | {"prompt": ""}, {}, "prompt must hold text, not ''"),
    ({"prompt": TEXT, "multi_modal_data": {"codes": [[0] * 4]}}, {},
     r"multi_modal_data must hold only 'audio', not \['codes'\]"),
    (following(task="generate"), {},
     "task 'generate' needs text, but the request gives text and audio"),
    (following(task="continue"), {}, r"task must be one of \['generate', 'melody'\], not 'cont"),
    ({"prompt": TEXT, "mm_processor_kwargs": {"task": "melody"}}, {},
     "task 'melody' needs text and audio, but the request gives text"),
    (following(np.zeros(0, np.float32)), {}, "audio must have at least one sample"),
    (following(np.full(9, np.nan, np.float32)), {}, "audio must have finite samples"),
    (following((NOISE, 100)), {}, "from_rate must be"),
    ({"prompt_token_ids": [5] * 231}, {},
     "prompt_token_ids must have at most 230 tokens, so that max_model_len = 256 has room for a "
     "frame and the melody's 21 positions too, not 231"),
    (TEXT, {"max_tokens": 250}, r"max_tokens must be at most 2\d\d frames "),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "fields", "message"), REFUSALS)
def test_a_refusal_names_the_field(
    front_end: FrontEnd, prompt: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{message}"):
        front_end.request(prompt, **fields)


def test_the_longest_text_leaves_room_for_a_frame(front_end: FrontEnd) -> None:
    made = front_end.request({"prompt_token_ids": [5] * 230}, SamplingParams())
    assert made.sampling_params.max_tokens == 1


def test_the_servers_requests_are_texts(front_end: FrontEnd) -> None:
    config = front_end.config.model_config
    spec = multistream_spec(config)
    assert spec is not None
    wish = SpeechInput(frozenset({"audio"}), text=TEXT, sampling={})
    prompt, params = plan_request(spec, task_defaults(config), wish)
    assert prompt["mm_processor_kwargs"] == {"task": "generate"}
    request = front_end.request(prompt, params)
    assert request.sampling_params.guidance_scale == 3.0
    # As many frames as there are positions.
    left = POSITIONS - len(request.prompt_token_ids) - 3
    assert request.sampling_params.max_tokens == left


def test_lanes_take_blocks_for_their_prompts_alone(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = SimpleNamespace(num_gpu_blocks=2 * 3 + 1, block_size=16)
    monkeypatch.setattr(front_end.config, "cache_config", cache)
    # 21 + 11 states, the start column, 12 frames and 3 steps are 48 positions.
    prompt: dict[str, Any] = {"prompt_token_ids": [5] * 11}
    fields: dict[str, Any] = {"guidance_scale": 3.0, "max_tokens": 12}
    assert front_end.request(prompt, **fields).guidance is not None
    cache.num_gpu_blocks -= 1
    with pytest.raises(InvalidRequestError, match="may need 6 KV cache blocks of 16 tokens"):
        front_end.request(prompt, **fields)


def test_a_request_crosses_to_the_engine(front_end: FrontEnd) -> None:
    request = front_end.request(following(), guidance_scale=3.0)
    sent = MsgpackDecoder(type(request)).decode(MsgpackEncoder().encode(request))
    assert sent.streams.encoder_input == request.streams.encoder_input
    assert [lane.encoder_input for lane in sent.guidance.lanes] == [
        lane.encoder_input for lane in request.guidance.lanes
    ]


def test_keys_tell_conditions_apart() -> None:
    inputs = [
        PrefixInput(chroma, ids, num_text)
        for chroma in (bytes(8), bytes(7) + b"\1", b"\1" + bytes(7), bytes(16))
        for ids, num_text in (([], 1), ([], 2), ([0], 1), ([0, 0], 2), ([1, 256], 2), ([256, 1], 2))
    ]
    assert len({prefix.key for prefix in inputs}) == len(inputs)
    assert replace_ids(inputs[2]).key == inputs[2].key


def replace_ids(prefix: PrefixInput) -> PrefixInput:
    """An equal input, of other objects."""
    return PrefixInput(bytes(bytearray(prefix.chroma)), list(prefix.token_ids), prefix.num_text)


def test_the_melody_is_what_the_preprocessors_file_says(tmp_path: Any) -> None:
    write_musicgen(tmp_path, melody=True)
    config = EngineArgs(model=str(tmp_path)).create_model_config().hf_config
    found = musicgen_spec(config, str(tmp_path))
    assert found.melody == MelodySpec(12, CHROMA_LENGTH, SAMPLE_RATE, 2048, 512, 30)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"hop_length": 0}))
    with pytest.raises(LayoutError, match=r"^melody\.hop must be an integer of at least 1, not 0"):
        musicgen_spec(config, str(tmp_path))
    file.unlink()
    published = MelodySpec(12, CHROMA_LENGTH, 32000, 16384, 4096, 30)
    assert musicgen_spec(config, str(tmp_path)).melody == published
    with pytest.raises(LayoutError, match="tasks must take 'prefix'"):
        replace(found, melody=None)
