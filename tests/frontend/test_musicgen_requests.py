# SPDX-License-Identifier: Apache-2.0
"""Requests for a MusicGen model, through upstream's front end up to what the engine gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.musicgen import register_architecture, t5_tokenizer, write_musicgen
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.speech.parameters import SpeechInput, plan_request
from vllm.renderers import renderer_from_config
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import SamplingParams
from vllm.unison.codecs.base import Codec
from vllm.unison.frontend import prompt_inputs
from vllm.unison.frontend.defaults import DefaultSamplingParams, frames_in, task_defaults
from vllm.unison.frontend.detokenizer import text_only
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.messages.conditioning import EncoderInput
from vllm.unison.model.spec import multistream_spec
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.input_processor import InputProcessor

BOOK_SIZE, BOOKS, RATE, SAMPLES_PER_FRAME = 64, 4, 8000, 160
FILL = BOOK_SIZE
POSITIONS = 1024
END = 1
TEXT = "lo-fi beat"
WORD = t5_tokenizer().encode("beat")


class CountingCodec(Codec):
    """Code of book k in frame f: f + k, modulo the book's size."""

    def __init__(self) -> None:
        super().__init__(
            sample_rate=RATE,
            samples_per_frame=SAMPLES_PER_FRAME,
            num_codebooks=BOOKS,
            codebook_size=BOOK_SIZE,
            device=torch.device("cpu"),
        )

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        count = len(samples) // SAMPLES_PER_FRAME
        return (torch.arange(count)[:, None] + torch.arange(BOOKS)) % BOOK_SIZE

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        raise AssertionError("prompts are not decoded")


class FrontEnd:
    """Upstream's renderer and input processor, of an engine that is not there."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.renderer = renderer_from_config(config)
        self.processor = InputProcessor(config, self.renderer)

    def request(self, prompt: Any, params: SamplingParams | None = None, **fields: Any) -> Any:
        """What the engine gets of a request."""
        parsed = parse_model_prompt(self.config.model_config, prompt)
        (engine_input,) = self.renderer.render_cmpl([parsed])
        params = SamplingParams(**fields) if params is None else params
        return self.processor.process_inputs(
            "request", engine_input, params, supported_tasks=("generate",)
        )


@pytest.fixture(scope="module")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    folder = tmp_path_factory.mktemp("musicgen")
    write_musicgen(folder, max_positions=POSITIONS, max_length=504)
    with pytest.MonkeyPatch.context() as patch:
        register_architecture(patch)
        patch.setattr(prompt_inputs, "codec_of", lambda spec, device: CountingCodec())
        arguments = EngineArgs(model=str(folder), dtype="float32", enforce_eager=True)
        yield FrontEnd(arguments.create_engine_config())


def clip(num_frames: int) -> tuple[np.ndarray, int]:
    return np.zeros(num_frames * SAMPLES_PER_FRAME, np.float32), RATE


def continued(num_frames: int, text: str = TEXT, **options: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt": text, "multi_modal_data": {"audio": clip(num_frames)}}
    return prompt | ({"mm_processor_kwargs": options} if options else {})


def test_a_text_goes_to_the_encoder_and_not_into_the_prompt(front_end: FrontEnd) -> None:
    ids = t5_tokenizer().encode(TEXT)
    assert ids[-1] == END
    for prompt in (TEXT, {"prompt": TEXT}, {"prompt_token_ids": ids}):
        request = front_end.request(prompt)
        assert request.prompt_token_ids == [FILL]
        assert request.streams.encoder_input == EncoderInput(ids)
        assert request.streams.auxiliary_ids.tolist() == [
            [FILL, FILL, FILL], [FILL, FILL, FILL], [-1, FILL, FILL], [-1, -1, FILL],
        ]  # fmt: skip
        assert (request.streams.segment_start, request.streams.num_flush_steps) == (1, 3)
        assert request.streams.text_slice is None
        assert request.guidance is None


def test_what_is_emitted_is_no_text(front_end: FrontEnd) -> None:
    """Ids of codes are not ones of the tokenizer, whose end token is a code like any other."""
    request = front_end.request(TEXT)
    made = IncrementalDetokenizer.from_new_request(front_end.renderer.tokenizer, request)
    detokenizer = text_only(made, request.streams)
    for token in ([5, END], [FILL], [2048]):
        assert detokenizer.update(token, False) is None
    assert detokenizer.get_next_output_text(True, False) == ""


def test_audio_is_continued_by_its_columns(front_end: FrontEnd) -> None:
    request = front_end.request(continued(5))
    assert request.prompt_token_ids == [FILL, 0, 1, 2, 3, 4]
    assert request.streams.segment_start == 1
    assert request.streams.encoder_input == EncoderInput(t5_tokenizer().encode(TEXT))
    steps = request.streams.auxiliary_ids
    # Stream k lies k positions later and begins with code k.
    assert steps[:, 0].tolist() == [FILL, FILL, 1, 2, 3, 4, 5, -1, -1]
    assert steps[:, 2].tolist() == [FILL, FILL, FILL, FILL, 3, 4, 5, 6, 7]


REFUSALS: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "prompt must hold text, not ''"),
    (" \n", {}, r"prompt must hold text, not ' \\n'"),
    ({"prompt": "", "multi_modal_data": {"audio": clip(2)}}, {}, "prompt must hold text, not ''"),
    ({"prompt_token_ids": []}, {}, "prompt_token_ids must have at least one token"),
    ({"prompt_token_ids": [4, 4096, 1]}, {},
     r"prompt_token_ids: token ids of the text must be in \[0, 82\), not 4096"),
    ({"prompt_token_ids": [4, -1]}, {}, "prompt_token_ids: token ids of the text must be in "),
    ("beat " * 512, {}, "prompt must have at most 512 tokens, the end token included, not 513"),
    ({"prompt_token_ids": [5] * 513}, {}, "prompt_token_ids must have at most 512 tokens"),
    ({"prompt": TEXT, "mm_processor_kwargs": {"voice": "slt"}}, {},
     r"mm_processor_kwargs must hold only \['task', 'duration', 'extend_stride'\], not \['voic"),
    ({"prompt_token_ids": [64], "mm_processor_kwargs": {"auxiliary_token_ids": [[1, 2, 3]]}}, {},
     r"mm_processor_kwargs must hold only \['task', 'duration', 'extend_stride'\], not \['auxi"),
    ({"prompt": TEXT, "mm_processor_kwargs": {"task": "sing"}}, {},
     r"task must be one of \['continue', 'generate'\], not 'sing'"),
    ({"prompt": TEXT, "mm_processor_kwargs": {"task": "continue"}}, {},
     "task 'continue' needs text and audio, but the request gives text"),
    ({"prompt": TEXT, "multi_modal_data": {"image": 1}}, {},
     r"multi_modal_data must hold only 'audio' or 'codes', not \['image'\]"),
    ({"prompt": TEXT, "multi_modal_data": {"audio": clip(2), "codes": [[0] * 4]}}, {},
     "multi_modal_data must not hold both audio and codes"),
    (continued(5, duration=2, extend_stride=1), {},
     "extend_stride takes several requests: LLM.generate and the server make them"),
    (TEXT, {"max_tokens": 1021},
     r"max_tokens must be at most 1020 frames \(20\.4 s\), not 1021: max_model_len = 1024 has to "
     r"hold the prompt \(1\) and the last steps of the delayed streams \(3\) too"),
    (continued(100), {"max_tokens": 921}, r"max_tokens must be at most 920 frames \(18\.4 s\), "),
    (continued(1020), {}, r"audio must have at most 1019 frames \(20\.38 s\), so that "),
    (continued(5, duration=21), {}, r"duration must be at most 20\.3 s \(1015 frames\), not 21"),
    (continued(5, duration=2), {"max_tokens": 100}, "duration and max_tokens must not both be giv"),
    (continued(5, duration=2), {"min_tokens": 101, "max_tokens": None},
     "min_tokens must be at most the 100 frames of duration, not 101"),
    (continued(5, duration=0.019), {}, r"duration must be a number of seconds, at least 0\.02, "),
    (continued(5, duration="2"), {}, r"duration must be a number of seconds, at least 0\.02, "),
    (TEXT, {"guidance_scale": 3.0, "negative_prompt": " "},
     "negative_prompt must hold text, not ' '"),
    (TEXT, {"guidance_scale": 3.0, "negative_prompt": "beat " * 512},
     "negative_prompt must have at most 512 tokens, the end token included, not 513"),
    (TEXT, {"guidance_scale": 3.0, "negative_prompt_token_ids": [82]},
     r"negative_prompt_token_ids: token ids of the text must be in \[0, 82\), not 82"),
    (TEXT, {"guidance_scale": 3.0, "negative_prompt_token_ids": []},
     "negative_prompt_token_ids must have at least one token"),
    (TEXT, {"guidance_lanes": [{"weight": 2.0}, {"weight": -1.0, "prompt": ""}]},
     r"guidance_lanes\[1\] must hold text, not ''"),
    (TEXT, {"stream_top_k": [5, 5, 5]}, "stream_top_k must be a number or a list of 4, "),
    (TEXT, {"stop_token_ids": [1]}, "stop_token_ids is not supported for multi-stream models"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "fields", "message"), REFUSALS)
def test_a_refusal_names_the_field(
    front_end: FrontEnd, prompt: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{message}") as refusal:
        front_end.request(prompt, **fields)
    assert refusal.value.parameter == message.replace("\\", "").split()[0].rstrip(":")


def test_what_just_fits_is_taken(front_end: FrontEnd) -> None:
    assert front_end.request("beat " * 511).streams.encoder_input.num_states == 512
    assert front_end.request(TEXT, max_tokens=1020).sampling_params.max_tokens == 1020
    assert front_end.request(continued(100), max_tokens=920).sampling_params.max_tokens == 920
    assert front_end.request(continued(1019)).sampling_params.max_tokens == 1
    longest = front_end.request(continued(5, duration=20.3)).sampling_params
    assert longest.max_tokens == 1015


def test_a_default_length_is_lowered_to_what_there_is_room_for(front_end: FrontEnd) -> None:
    # The published 504 positions are 500 frames.
    assert front_end.request(continued(5)).sampling_params.max_tokens == 500
    assert front_end.request(continued(900)).sampling_params.max_tokens == 120
    assert front_end.request(TEXT, max_tokens=None).sampling_params.max_tokens == 1020


@pytest.mark.parametrize(
    ("duration", "frames"), [(1, 50), (0.02, 1), (0.58, 29), (2.999, 149), (10.0, 500)]
)
def test_a_duration_is_whole_frames(front_end: FrontEnd, duration: float, frames: int) -> None:
    prompt = {"prompt": TEXT, "mm_processor_kwargs": {"duration": duration}}
    for params in (SamplingParams(), DefaultSamplingParams(), SamplingParams(max_tokens=None)):
        assert front_end.request(prompt, params).sampling_params.max_tokens == frames


def test_models_that_end_their_audio_take_no_duration(front_end: FrontEnd) -> None:
    spec = multistream_spec(front_end.config.model_config)
    assert spec is not None
    with pytest.raises(ValueError, match="duration must not be given: the model ends its audio"):
        frames_in(replace(spec, frames_per_second=None), 2.0)


def test_without_parameters_the_published_ones_hold(front_end: FrontEnd) -> None:
    made = front_end.request(TEXT, DefaultSamplingParams())
    params = made.sampling_params
    found = (params.temperature, params.top_k, params.top_p, params.max_tokens)
    assert found == (1.0, 50, 1.0, 500)
    assert params.guidance_scale == 3.0
    assert made.guidance.weight == 3.0
    # Given parameters are what they say, but for the length.
    plain = front_end.request(TEXT, SamplingParams())
    assert (plain.sampling_params.top_k, plain.sampling_params.max_tokens) == (0, 500)
    assert plain.guidance is None


def test_the_server_s_defaults_are_the_same(front_end: FrontEnd) -> None:
    config = front_end.config.model_config
    spec = multistream_spec(config)
    assert spec is not None
    wish = SpeechInput(frozenset({"audio"}), text=TEXT, sampling={"top_k": 5})
    prompt, params = plan_request(spec, task_defaults(config), wish)
    assert prompt["mm_processor_kwargs"] == {"task": "generate"}
    assert (params.top_k, params.guidance_scale, params.max_tokens) == (5, 3.0, 500)
    prompt["mm_processor_kwargs"]["duration"] = 3
    assert front_end.request(prompt, params).sampling_params.max_tokens == 150


def test_the_null_lane_has_the_same_prompt_and_attends_to_nothing(front_end: FrontEnd) -> None:
    request = front_end.request(continued(5), guidance_scale=2.5, guidance_interval=(3, 9))
    guidance = request.guidance
    assert (guidance.weight, guidance.first, guidance.last) == (2.5, 3, 9)
    # Its lane has all frames since the prompt, whichever of them are guided.
    assert not guidance.audio_only
    (lane,) = guidance.lanes
    assert (lane.weight, lane.encoder_input) == (-1.5, None)
    assert lane.prompt_token_ids == request.prompt_token_ids
    np.testing.assert_array_equal(lane.auxiliary_ids, request.streams.auxiliary_ids[:6])


def test_negative_prompts_are_what_a_lane_attends_to(front_end: FrontEnd) -> None:
    given: list[dict[str, Any]] = [
        {"negative_prompt": "beat"}, {"negative_prompt_token_ids": WORD}
    ]  # fmt: skip
    for fields in given:
        request = front_end.request(TEXT, guidance_scale=3.0, **fields)
        (lane,) = request.guidance.lanes
        assert lane.prompt_token_ids == [FILL]
        assert lane.encoder_input == EncoderInput(WORD)
        assert request.streams.encoder_input == EncoderInput(t5_tokenizer().encode(TEXT))


def test_lanes_have_prompts_of_their_own(front_end: FrontEnd) -> None:
    lanes: list[dict[str, Any]] = [
        {"weight": 3.0}, {"weight": -1.5, "prompt": "beat"}, {"weight": -0.5},
        {"weight": 0.0, "prompt_token_ids": [5, 6, END]},
    ]  # fmt: skip
    made = front_end.request(TEXT, guidance_lanes=lanes).guidance.lanes
    expected = [EncoderInput(WORD), None, EncoderInput([5, 6, END])]
    assert [lane.encoder_input for lane in made] == expected
    assert [lane.prompt_token_ids for lane in made] == [[FILL]] * 3


def test_several_completions_and_streams_of_their_own_settings(front_end: FrontEnd) -> None:
    params = front_end.request(TEXT, n=3, stream_top_k=[9, 8, 7, 6], seed=4).sampling_params
    assert (params.n, params.stream_top_k, params.seed) == (3, [9, 8, 7, 6], 4)


@pytest.mark.parametrize(
    ("fields", "num_blocks"),
    [
        # 1 + 12 + 3 tokens are a block of 16 per lane; a text of 16 ids is another one, of 17 two.
        ({"guidance_scale": 3.0}, 2 + 1),
        ({"guidance_scale": 3.0, "negative_prompt_token_ids": [5] * 16}, 2 + 1 + 1),
        ({"guidance_scale": 3.0, "negative_prompt_token_ids": [5] * 17}, 2 + 1 + 2),
        ({"guidance_lanes": [{"weight": 3.0}, {"weight": -1.0}, {"weight": -1.0}]}, 3 + 1),
    ],
)
def test_what_lanes_attend_to_counts_as_blocks(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], num_blocks: int
) -> None:
    cache = SimpleNamespace(num_gpu_blocks=num_blocks + 1, block_size=16)
    monkeypatch.setattr(front_end.config, "cache_config", cache)
    prompt = {"prompt_token_ids": [5] * 16}
    assert front_end.request(prompt, max_tokens=12, **fields).guidance is not None
    cache.num_gpu_blocks -= 1
    message = f"may need {num_blocks} KV cache blocks of 16 tokens, but the cache has "
    with pytest.raises(InvalidRequestError, match=message):
        front_end.request(prompt, max_tokens=12, **fields)
    # A default gives way, down to where no lane needs a block fewer.
    params = SamplingParams(**fields)
    cache.num_gpu_blocks += 1
    assert front_end.request(prompt, params).sampling_params.max_tokens == 12
