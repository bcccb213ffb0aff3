# SPDX-License-Identifier: Apache-2.0
"""From a user's prompt to the ids of all streams."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.random_layouts import example, layouts
from vllm.unison.codecs.base import Codec
from vllm.unison.frontend import clip_encoder, prompt_inputs, prompts
from vllm.unison.frontend.clip_encoder import MAX_AHEAD
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.prompt_layout import (
    Piece,
    apply_delay_pattern,
    frames_of_codes,
    frames_of_tokens,
    lay_out,
)
from vllm.unison.frontend.prompts import PromptBuilder, encode_ahead, stream_prompt_builder
from vllm.unison.model.layout import DelayScope, PhaseKind, StreamLayout
from vllm.unison.model.spec import CodecSource, SpeechSpec, TaskPrompt

RATE, SAMPLES_PER_FRAME, BOOKS, BOOK_SIZE = 8000, 4, 3, 4


class CountingCodec(Codec):
    """Code of book k in frame f: (k + the first sample's sixteenths) modulo the book's size."""

    def __init__(self) -> None:
        super().__init__(
            sample_rate=RATE,
            samples_per_frame=SAMPLES_PER_FRAME,
            num_codebooks=BOOKS,
            codebook_size=BOOK_SIZE,
            device=torch.device("cpu"),
        )
        self.heard: list[torch.Tensor] = []

    def _encode(self, samples: torch.Tensor) -> torch.Tensor:
        self.heard.append(samples)
        first = (samples[::SAMPLES_PER_FRAME] * 16).round().long()
        return (first[:, None] + torch.arange(BOOKS)) % BOOK_SIZE

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        raise AssertionError("prompts are not decoded")


CODEC = CodecSource("codec")
TASKS = (
    TaskPrompt("speak", (1, "text", 5)),
    TaskPrompt("listen", (5, "audio", 1)),
    TaskPrompt("voice", (8, "audio", 1, "text", "flush", 5)),
    TaskPrompt("silence", (9,)),
)


class Setting:
    """A builder with a fake codec."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tasks: tuple[TaskPrompt, ...] = TASKS,
        codec: CodecSource | None = CODEC,
        **layout: Any,
    ) -> None:
        self.layout = StreamLayout.from_dict(example(**layout))
        self.codec = CountingCodec()
        monkeypatch.setattr(prompt_inputs, "codec_of", lambda spec, device: self.codec)
        self.builder = PromptBuilder(SpeechSpec(self.layout, codec=codec, tasks=tasks))

    def build(self, ids: list[int], **prompt: Any) -> tuple[list[int], list[list[int]]]:
        """Stream 0, and the other streams in steps."""
        built: Any = self.builder.build({"prompt_token_ids": ids, **prompt})
        assert built["auxiliary_token_ids"].dtype == np.int32
        return built["prompt_token_ids"], built["auxiliary_token_ids"].tolist()


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    yield Setting(monkeypatch)


def clip(*sixteenths: int) -> np.ndarray:
    """One frame per number, at the codec's rate."""
    return np.repeat(np.array(sixteenths, np.float32) / 16, SAMPLES_PER_FRAME)


def audio(data: Any, **options: Any) -> dict[str, Any]:
    return {
        "multi_modal_data": {"audio": data},
        **({"mm_processor_kwargs": options} if options else {}),
    }


def options(**given_options: Any) -> dict[str, Any]:
    return {"mm_processor_kwargs": given_options}


@given(layouts(), st.data())
def test_a_prompt_in_steps_holds_its_frames(layout: StreamLayout, data: st.DataObject) -> None:
    ids = st.integers(0, layout.vocabulary_size - 1)
    count, streams = data.draw(st.integers(0, 7)), layout.num_streams
    frames = np.array(
        data.draw(st.lists(ids, min_size=count * streams, max_size=count * streams)), np.int32
    ).reshape(count, streams)
    built = apply_delay_pattern(layout, frames)
    assert built.token_ids == frames[:, 0].tolist()
    assert built.auxiliary_ids.dtype == np.int32
    assert built.auxiliary_ids.shape == (count + layout.max_delay if count else 0, streams - 1)
    for step, row in enumerate(built.auxiliary_ids):
        for stream in range(1, streams):
            frame = step - layout.delays[stream]
            if frame < 0:
                expected = layout.pad_token_ids[stream]
            else:
                # Past its last frame a stream is free; inside the prompt that cannot be.
                expected = frames[frame, stream] if frame < count else -1
                assert frame < count or step >= count
            assert row[stream - 1] == expected


def test_frames_of_tokens_are_pads_beside_stream_0() -> None:
    layout = StreamLayout.from_dict(example(pad_token_ids=[9, 8, 7]))
    np.testing.assert_array_equal(frames_of_tokens(layout, [3, 11]), [[3, 8, 7], [11, 8, 7]])
    assert frames_of_tokens(layout, []).shape == (0, 3)


def test_frames_of_codes_follow_the_codebook_streams() -> None:
    layout = StreamLayout.from_dict(example(codebook_streams=[2, 0, 1]))
    np.testing.assert_array_equal(
        frames_of_codes(layout, np.array([[0, 1, 2], [3, 3, 3]], np.int32)),
        [[21, 26, 28], [23, 27, 31]],
    )
    partial = StreamLayout.from_dict(example(codebook_streams=[1]))
    with pytest.raises(ValueError, match=r"audio: .* no ids for streams \[0, 2\]"):
        frames_of_codes(partial, np.array([[0]], np.int32))


def test_plain_tokens_are_taken_as_they_are(setting: Setting) -> None:
    # What is emitted first has no suffix beside it: the worker lays the lead-in of its segment.
    assert setting.build([1, 10, 5]) == ([1, 10, 5], [[0, 0]] * 3)


def test_text_goes_where_the_task_says(setting: Setting) -> None:
    ids, auxiliary = setting.build([10, 11], prompt="ab")
    assert ids == [1, 10, 11, 5]
    assert auxiliary == [[0, 0]] * 4


def test_audio_goes_where_the_task_says(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch, delay_scope="sequence")
    ids, auxiliary = setting.build([], **audio((clip(1, 2), RATE)))
    # Frames (1, 2, 3) and (2, 3, 0); the suffix of stream 2 lies beside what is generated first.
    assert ids == [5, 21, 22, 1]
    assert auxiliary == [[0, 0], [0, 0], [26, 0], [27, 31], [0, 28], [-1, 0]]


def test_steps_that_were_laid_out_can_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch, delay_scope="sequence")
    token_ids, auxiliary = setting.build([1, 10, 5])
    assert auxiliary[-1] == [-1, 0]
    assert setting.build(token_ids, **options(auxiliary_token_ids=auxiliary)) == (
        token_ids,
        auxiliary,
    )


def test_a_long_tail_lies_beside_what_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch, delay_scope="sequence", delays=[0, 1, 3])
    ids, auxiliary = setting.build([], **audio((clip(1, 2), RATE)))
    assert ids == [5, 21, 22, 1]
    assert auxiliary == [[0, 0], [0, 0], [26, 0], [27, 0], [0, 31], [-1, 28], [-1, 0]]


def test_a_segment_is_padded_until_its_streams_have_caught_up(setting: Setting) -> None:
    assert setting.layout.delay_scope is DelayScope.SEGMENT
    ids, auxiliary = setting.build([], **audio((clip(1, 2), RATE)))
    assert ids == [5, 21, 22, 0, 0, 1]
    assert auxiliary == [[0, 0], [0, 0], [26, 0], [27, 31], [0, 28], [0, 0]]


FILLS = {
    "lead_in": {"token_ids": [12, 13, 14], "sampled": True},
    "end": {"token_ids": [6, 7, 8]},
    "tail": {"token_ids": [9, 15, 16]},
}


def test_a_segment_has_the_layout_s_fills_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch, fills=FILLS, delays=[0, 1, 3])
    ids, auxiliary = setting.build([], **audio((clip(1, 2), RATE)))
    # Two frames, (1, 2, 3) and (2, 3, 0), and the largest delay; each stream's end once, then its
    # tail. Tokens have pads beside them.
    assert ids == [5, 21, 22, 6, 9, 9, 1]
    assert auxiliary == [[0, 0], [13, 14], [26, 14], [27, 14], [7, 31], [15, 28], [0, 0]]
    # Nothing is said of the steps that follow, where the lead-in of new audio is sampled.
    assert setting.build([10], prompt="a") == ([1, 10, 5], [[0, 0]] * 3)


def test_audio_at_the_end_is_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = (TaskPrompt("continue", (1, "text", 5, "audio")),)
    setting = Setting(monkeypatch, tasks=tasks, fills=FILLS)
    ids, auxiliary = setting.build([10], prompt="a", **audio((clip(1, 2), RATE)))
    assert ids == [1, 10, 5, 21, 22]
    # The suffix holds what is left of the frames.
    assert auxiliary == [[0, 0], [0, 0], [0, 0], [13, 14], [26, 14], [27, 31], [-1, 28]]
    # Codes that are given as tokens after the one that begins audio are gone on from as well.
    assert setting.build([5, 21, 22]) == ([5, 21, 22], [[0, 0], [13, 14], [0, 14], [0, 0], [-1, 0]])


@given(layouts(), st.data())
def test_pieces_lie_in_segments_of_their_own(layout: StreamLayout, data: st.DataObject) -> None:
    layout = replace(layout, delay_scope=DelayScope.SEGMENT)
    # Ids that begin no phase, but for the last of all. Without one, generation goes on from the
    # prompt's tokens where the first phase is one of audio.
    begins = {token for phase in layout.phases for token in phase.begin_tokens}
    begins_in_audio = layout.phases[0].kind is PhaseKind.AUDIO
    assume(begins or not begins_in_audio)
    plain = [token for token in range(layout.vocabulary_size) if token not in begins]
    streams, pieces, expected = layout.num_streams, [], []
    for is_audio in data.draw(st.lists(st.booleans(), min_size=1, max_size=4)):
        count = data.draw(st.integers(1, 5))
        columns = st.lists(st.sampled_from(plain), min_size=streams, max_size=streams)
        frames = np.array([data.draw(columns) for _ in range(count)], np.int32)
        frames = frames if is_audio else frames_of_tokens(layout, frames[:, 0].tolist())
        pieces.append(Piece(frames, is_audio))
        for step in range(count + (layout.max_delay if is_audio else 0)):
            row = frames[step].tolist() if not is_audio else []
            for stream, delay in enumerate(layout.delays if is_audio else ()):
                place = layout.lead_in if step < delay else layout.tail
                place = layout.end if step == delay + count else place
                inside = delay <= step < delay + count
                row.append(int(frames[step - delay, stream]) if inside else place.token_ids[stream])
            expected.append(row)
    last = data.draw(st.sampled_from(plain))
    pieces.append(Piece(frames_of_tokens(layout, [last])))
    expected.append([last, *layout.pad_token_ids[1:]])
    if begins and (begins_in_audio or data.draw(st.booleans())):
        token = data.draw(st.sampled_from(sorted(begins)))
        pieces.append(Piece(frames_of_tokens(layout, [token])))
        expected.append([token, *layout.pad_token_ids[1:]])
    built = lay_out(layout, pieces)
    assert built.token_ids == [row[0] for row in expected]
    assert built.auxiliary_ids.tolist() == [row[1:] for row in expected]


def test_text_and_audio_and_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch, delay_scope="sequence")
    ids, auxiliary = setting.build([10], prompt="a", **audio((clip(1), RATE)))
    assert ids == [8, 21, 1, 10, 0, 0, 5]
    assert auxiliary[:5] == [[0, 0], [0, 0], [26, 0], [0, 31], [0, 0]]


def test_a_named_task_is_used(setting: Setting) -> None:
    ids, _ = setting.build([], mm_processor_kwargs={"task": "silence"})
    assert ids == [9]
    ids, _ = setting.build([12], mm_processor_kwargs={"task": "speak"})
    assert ids == [1, 12, 5]


def test_a_task_that_needs_more_than_is_given_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = (TaskPrompt("both", (1, "text", "audio", 5)), TaskPrompt("plain", (9, "text", 5)))
    setting = Setting(monkeypatch, tasks=tasks)
    assert setting.build([10], prompt="a")[0] == [9, 10, 5]


def test_text_without_tasks_is_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch, tasks=())
    assert setting.build([10, 11], prompt="ab")[0] == [10, 11]


def voice_setting(monkeypatch: pytest.MonkeyPatch, default: str | None = None) -> Setting:
    setting = Setting(monkeypatch)
    spec = SpeechSpec(
        setting.layout,
        tasks=(TaskPrompt("plain", (1, "text", 5)), TaskPrompt("voiced", (9, "voice", "text", 5))),
        voices={"slt": (2, 3), "rms": (4,)},
        default_voice=default,
    )
    setting.builder = PromptBuilder(spec)
    return setting


def test_a_voice_s_ids_go_where_the_task_says(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = voice_setting(monkeypatch)
    # A voice leads to the first task that has a place for one.
    assert setting.build([10], prompt="a")[0] == [1, 10, 5]
    ids, auxiliary = setting.build([10], prompt="a", **options(voice="slt"))
    assert ids == [9, 2, 3, 10, 5]
    assert auxiliary == [[0, 0]] * 5
    assert setting.build([10], **options(voice="rms"))[0] == [9, 4, 10, 5]
    assert setting.build([10], **options(voice="rms", task="voiced"))[0] == [9, 4, 10, 5]


def test_without_a_voice_the_default_or_none_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    named = options(task="voiced")
    assert voice_setting(monkeypatch).build([10], **named)[0] == [9, 10, 5]
    setting = voice_setting(monkeypatch, default="rms")
    assert setting.build([10], **named)[0] == [9, 4, 10, 5]
    assert setting.build([10], **options(task="voiced", voice="slt"))[0] == [9, 2, 3, 10, 5]


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"voice": "kal"}, r"voice must be one of \['rms', 'slt'\], not 'kal'"),
        ({"voice": ["slt"]}, r"voice must be one of \['rms', 'slt'\], not \['slt'\]"),
        ({"voice": "slt", "task": "plain"}, r"voice must not be given: task 'plain' has no place"),
        ({"voice": "slt", "auxiliary_token_ids": [[0, 0]]}, r"must come without audio, task and"),
    ],
)
def test_a_voice_that_has_no_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, given_options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as raised:
        voice_setting(monkeypatch).build([10], **options(**given_options))
    assert raised.value.parameter == message.split(" ")[0].replace("must", "auxiliary_token_ids")


def test_a_model_without_voices_takes_none(setting: Setting) -> None:
    with pytest.raises(InvalidRequestError, match=r"voice must be one of \[\], not 'slt'"):
        setting.build([10], **options(voice="slt"))


CLONING = (
    TaskPrompt("speak", (1, (7, "reference_text"), (8, "voice", 9), 2, "text", 5)),
    TaskPrompt("recorded", (8, "voice", 5)),
    TaskPrompt("maybe", (1, ("text",), 9, "audio", 1)),
)


def cloning(monkeypatch: pytest.MonkeyPatch, **more: Any) -> Setting:
    setting = Setting(monkeypatch, tasks=CLONING, **more)
    setting.builder.inputs.tokenize = lambda text: [10 + ord(letter) - ord("a") for letter in text]
    return setting


def recording(*sixteenths: int, **options: Any) -> dict[str, Any]:
    return {
        "multi_modal_data": {"voice": (clip(*sixteenths), RATE)},
        **({"mm_processor_kwargs": options} if options else {}),
    }


def test_an_optional_section_is_laid_if_its_part_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = cloning(monkeypatch, fills=FILLS)
    assert setting.build([10], prompt="a") == ([1, 2, 10, 5], [[0, 0]] * 4)
    ids, auxiliary = setting.build([10], prompt="a", **recording(1, 2))
    assert ids == [1, 8, 21, 22, 6, 9, 9, 2, 10, 5]
    spoken = [[13, 14], [26, 14], [27, 31], [7, 28]]
    assert auxiliary == [[0, 0], [0, 0], *spoken, [0, 0], [0, 0], [0, 0], [0, 0]]
    ids, _ = setting.build([10], prompt="a", **recording(1, 2, reference_text="bc"))
    assert ids == [1, 7, 11, 12, 8, 21, 22, 6, 9, 9, 2, 10, 5]
    # The text may be given as ids.
    assert setting.build([10], prompt="a", **recording(1, 2, reference_text=[11, 12]))[0] == ids
    # What may be given besides what must: text beside audio, in the last task.
    assert setting.build([], **audio((clip(1), RATE)))[0] == [1, 9, 21, 6, 9, 1]
    assert setting.build([10], prompt="a", **audio((clip(1), RATE)))[0] == [1, 10, 9, 21, 6, 9, 1]


def test_a_task_of_a_recording_s_voice_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = cloning(monkeypatch)
    assert setting.build([], **recording(1))[0] == [8, 21, 0, 0, 5]
    for prompt in ({"mm_processor_kwargs": {"task": "recorded"}}, {"prompt": ""}):
        with pytest.raises(InvalidRequestError, match=r"^voice must be given: task"):
            setting.build([], **prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (options(reference_text="a"), "^reference_text must come with what it is the text of"),
        (recording(1, reference_text=""), "^reference_text must hold text that the model's"),
        (recording(1, reference_text=5), "^reference_text must be a text, or its token ids"),
        (recording(1, reference_text=[40]), r"^reference_text must be in \[0, 40\), not 40"),
        (recording(1, reference_text=["a"]), "^reference_text must be a text, or its token ids"),
        (recording(1, voice="slt"), "^voice must be given once: by its name, or as a recording"),
        (recording(1, task="maybe"), "^task 'maybe' needs audio, but the request gives text"),
        ({"multi_modal_data": {"voice": []}}, "^voice must have at least one sample"),
        ({"multi_modal_data": {"voice": "a.wav"}}, "^voice must be samples"),
    ],
)
def test_a_refusal_of_a_recording_names_the_field(
    monkeypatch: pytest.MonkeyPatch, prompt: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        cloning(monkeypatch).build([10], prompt="a", **prompt)


def test_a_text_of_a_recording_without_a_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = cloning(monkeypatch)
    with pytest.raises(InvalidRequestError, match=r"^reference_text must not be given: task 'rec"):
        setting.build([], **recording(1, reference_text="a", task="recorded"))
    setting.builder.inputs.tokenize = None
    with pytest.raises(InvalidRequestError, match=r"^reference_text as text needs a tokenizer"):
        setting.build([10], prompt="a", **recording(1, reference_text="a"))


def test_a_text_of_a_recording_that_a_task_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = cloning(monkeypatch)
    task = TaskPrompt("needy", (7, "reference_text", 8, "voice", 2, "text", 5))
    spec = SpeechSpec(setting.layout, tasks=(task,), codec=CODEC, voices={"slt": (3,)})
    builder = PromptBuilder(spec, tokenize=setting.builder.inputs.tokenize)
    built: Any = builder.build({"prompt_token_ids": [10], **recording(1, reference_text="b")})
    assert built["prompt_token_ids"] == [7, 11, 8, 21, 0, 0, 2, 10, 5]
    with pytest.raises(InvalidRequestError, match=r"^reference_text must be given: task 'needy'"):
        builder.build({"prompt_token_ids": [10], **recording(1)})
    # A voice of the model's own has no recording to say anything.
    built = builder.build({"prompt_token_ids": [10], **options(voice="slt")})
    assert built["prompt_token_ids"] == [7, 8, 3, 2, 10, 5]


def test_what_the_engine_needs_is_passed_on(setting: Setting) -> None:
    built: Any = setting.builder.build(
        {"prompt_token_ids": [10], "prompt": "a", "cache_salt": "salt"}
    )
    assert built["prompt"] == "a" and built["cache_salt"] == "salt"
    built = setting.builder.build({"prompt_token_ids": [10]})
    assert "cache_salt" not in built


def test_given_steps_are_taken_as_they_are(setting: Setting) -> None:
    steps = [[0, 0], [24, 0], [25, 28], [0, 31]]
    for form in (steps, np.array(steps), np.array(steps, np.int16)):
        ids, auxiliary = setting.build(
            [5, 20, 21, 1], mm_processor_kwargs={"auxiliary_token_ids": form}
        )
        assert (ids, auxiliary) == ([5, 20, 21, 1], steps)
    # Up to max(delays) rows of suffix may follow.
    with_tail = [*steps, [0, 30], [0, 0]]
    _, auxiliary = setting.build(
        [5, 20, 21, 1], mm_processor_kwargs={"auxiliary_token_ids": with_tail}
    )
    assert auxiliary == with_tail


@pytest.mark.parametrize(
    "form",
    [
        lambda samples: (samples, RATE),
        lambda samples: samples,
        lambda samples: samples.tolist(),
        lambda samples: torch.from_numpy(samples),
        lambda samples: [samples],
        lambda samples: [(samples, RATE)],
        lambda samples: (torch.from_numpy(samples), float(RATE)),
        lambda samples: (samples.astype(np.float64), np.int64(RATE)),
        lambda samples: (np.stack([samples, samples]), RATE),
    ],
)
def test_every_form_of_audio_is_taken(setting: Setting, form: Any) -> None:
    ids, _ = setting.build([], **audio(form(clip(1, 2, 3))))
    assert ids == [5, 21, 22, 23, 0, 0, 1]
    assert len(setting.codec.heard) == 1
    np.testing.assert_array_equal(setting.codec.heard[0].numpy(), clip(1, 2, 3))


def test_audio_is_resampled_to_the_codec_s_rate(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def resample(samples: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
        calls.append((len(samples), from_rate, to_rate))
        return clip(1, 2)

    monkeypatch.setattr(clip_encoder, "resample", resample)
    ids, _ = setting.build([], **audio((np.zeros(16, np.float32), 16000)))
    assert calls == [(16, 16000, RATE)]
    assert ids == [5, 21, 22, 0, 0, 1]


def test_a_known_clip_is_not_encoded_again(setting: Setting) -> None:
    first = setting.build([], **audio((clip(1, 2), RATE)))
    assert setting.build([], **audio((clip(1, 2), RATE))) == first
    assert len(setting.codec.heard) == 1
    setting.build([], **audio((clip(1, 3), RATE)))
    setting.build([], **audio((clip(1, 2), 2 * RATE)))
    assert len(setting.codec.heard) == 3


def test_equal_bytes_of_another_shape_are_another_clip(setting: Setting) -> None:
    mono = clip(1, 2, 3, 0)
    mono_ids, _ = setting.build([], **audio((mono, RATE)))
    stereo_ids, _ = setting.build([], **audio((mono.reshape(2, -1), RATE)))
    assert (len(mono_ids), len(stereo_ids)) == (8, 6)


@pytest.mark.parametrize(
    ("ids", "prompt", "message"),
    [
        ([10], options(tasks="speak"), r"mm_processor_kwargs must hold only .*\['tasks'\]"),
        ([10], {"multi_modal_data": {"image": 1}}, r"multi_modal_data must hold only 'audio'"),
        ([10], options(task="sing"), r"task must be one of \['listen', .* not 'sing'"),
        ([10], options(task="listen"), "task 'listen' needs audio, but the request gives text"),
        ([], options(task="speak"), "task 'speak' needs text, but the request gives nothing"),
        ([40], {"prompt": "x"}, r"prompt_token_ids must be in \[0, 40\), not 40"),
        ([10, -1], {}, r"prompt_token_ids must be in \[0, 40\), not -1"),
        ([10], options(auxiliary_token_ids=[[0, 0]], task="speak"), "must come without audio"),
        ([10], audio(clip(1), auxiliary_token_ids=[[0, 0]]), "must come without audio"),
        ([10], options(auxiliary_token_ids=[[0]]), r"integers of shape \[n, 2\] .* \[1, 3\]"),
        ([10], options(auxiliary_token_ids=[0, 0]), r"integers of shape \[n, 2\]"),
        ([10], options(auxiliary_token_ids=[[0.0, 0.0]]), r"integers of shape \[n, 2\]"),
        ([10], options(auxiliary_token_ids=[[0, 0]] * 4), r"with n in \[1, 3\], not .* \[4, 2\]"),
        ([10, 10], options(auxiliary_token_ids=[[0, 0]]), r"with n in \[2, 4\], not .* \[1, 2\]"),
        (
            [10],
            options(auxiliary_token_ids=[[28, 0]]),
            r"auxiliary_token_ids of stream 1 must be in \[24, 28\) or the pad 0 \(.*\), not 28",
        ),
        (
            [10],
            options(auxiliary_token_ids=[[0, -1]]),
            r"auxiliary_token_ids of stream 2 must be in \[28, 32\) or the pad 0 \(.*\), not -1",
        ),
        ([40], options(auxiliary_token_ids=[[0, 0]]), r"prompt_token_ids must be in \[0, 40\)"),
        (
            [],
            audio((clip(1), RATE), task="voice"),
            "needs text and audio, but .* gives audio",
        ),
        ([], audio([clip(1), clip(1)]), "audio must be one clip, not 2"),
        ([], audio([]), "audio must have at least one sample"),
        ([], audio((np.zeros(0, np.float32), RATE)), "audio must have at least one sample"),
        ([], audio((clip(1), None)), "audio's sample rate must be a number of Hz, not None"),
        ([], audio((clip(1), True)), "audio's sample rate must be a number of Hz, not True"),
        ([], audio([[0.0], [0.0, 1.0]]), "audio must be"),
        ([10], options(auxiliary_token_ids=[[0, 0], [0]]), "auxiliary_token_ids must be an array"),
        ([], audio("speech.wav"), "audio must be samples"),
        ([], audio({"samples": 1}), "audio must be samples"),
        ([], audio((np.zeros(4, np.complex64), RATE)), "audio must be samples"),
        ([], audio((np.zeros(4, bool), RATE)), "audio must be samples"),
        ([], audio((np.array([0, np.nan], np.float32), RATE)), "audio must have finite samples"),
        ([], audio((clip(1), 100)), r"from_rate must be a whole number of Hz in \[4000, 192000\]"),
        ([], audio((clip(1), 0)), "from_rate must be a whole number of Hz"),
    ],
)
def test_a_refusal_names_the_field(
    setting: Setting, ids: list[int], prompt: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        setting.build(ids, **prompt)


def test_inputs_that_no_task_takes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch, tasks=TASKS[:1])
    with pytest.raises(ValueError, match=r"audio: the model has no task from audio; it has"):
        setting.build([], **audio(clip(1)))
    bare = Setting(monkeypatch, tasks=())
    with pytest.raises(ValueError, match="audio: the model has no task from audio"):
        bare.build([], **audio(clip(1)))


def test_audio_for_a_model_without_codec_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(monkeypatch, codec=None)
    with pytest.raises(ValueError, match="audio is not accepted: the model has no codec"):
        setting.build([], **audio(clip(1)))


def test_prompts_are_built_beside_the_event_loop(setting: Setting) -> None:
    threads = set()
    build = setting.builder._build

    def noted(prompt: Any) -> Any:
        threads.add(threading.current_thread())
        return build(prompt)

    setting.builder._build = noted  # type: ignore[method-assign]
    given = [
        {"prompt_token_ids": [], **audio((clip(1, 2), RATE))},
        {"prompt_token_ids": [10], "prompt": "a"},
    ]

    async def run() -> list[Any]:
        return await asyncio.gather(*map(setting.builder.build_async, given))

    built = asyncio.run(run())
    assert [one["prompt_token_ids"] for one in built] == [[5, 21, 22, 0, 0, 1], [1, 10, 5]]
    assert threading.main_thread() not in threads
    with pytest.raises(InvalidRequestError, match="audio must have at least one sample"):
        asyncio.run(setting.builder.build_async({"prompt_token_ids": [], **audio([])}))


def test_the_audio_of_an_offline_batch_is_encoded_ahead(setting: Setting) -> None:
    renderer = SimpleNamespace(_stream_prompt_builder=setting.builder)
    given: list[Any] = ["text", {"prompt": "text"}, {"prompt": "", **audio("no audio")}]
    given += [{"prompt": "", **audio((clip(1) + n / 1000, RATE))} for n in range(100)]
    ahead = encode_ahead(renderer, given)
    assert len(ahead) == len(given) and ahead[1] is given[1]
    most = min(2 * setting.builder.encoder.num_threads, MAX_AHEAD)
    for index, prompt in enumerate(ahead):
        assert prompt is given[index]
        # All that were begun have ended when the threads have done what was asked after them.
        setting.builder.encoder.submit(int).result()
        assert len(setting.codec.heard) <= max(0, min(index - 2, 99) + most)
        if index >= 3:
            setting.build([], **audio(prompt["multi_modal_data"]["audio"]))
    assert len(setting.codec.heard) == 100


def test_prompts_of_other_models_are_left_alone() -> None:
    given = ["text", {"prompt": "text"}]
    assert encode_ahead(SimpleNamespace(_stream_prompt_builder=None), given) is given


def test_a_renderer_has_one_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SpeechSpec(StreamLayout.from_dict(example()))
    asked = []

    def multistream_spec(model_config: Any) -> SpeechSpec | None:
        asked.append(model_config)
        return spec if model_config == "speech" else None

    monkeypatch.setattr(prompts, "multistream_spec", multistream_spec)
    speech, text = SimpleNamespace(model_config="speech"), SimpleNamespace(model_config="text")
    assert stream_prompt_builder(speech) is stream_prompt_builder(speech) is not None
    assert stream_prompt_builder(text) is stream_prompt_builder(text) is None
    assert asked == ["speech", "text"]
