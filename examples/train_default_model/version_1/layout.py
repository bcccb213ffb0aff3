# SPDX-License-Identifier: Apache-2.0
"""The default model's ids, stream layout and prompts, and how a training example is laid out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from synthesize import SPEAKERS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from train_codec import CONFIG as CODEC

from vllm.unison.model.delay_pattern import interleave

PAD, END, BEGIN_AUDIO, BEGIN_TEXT, SPEAK, TRANSCRIBE, CONTINUE = range(7)
FIRST_SPEAKER = 8
FIRST_TEXT = 16
NUM_TEXT = 1008
FIRST_CODE = FIRST_TEXT + NUM_TEXT
NUM_STREAMS = CODEC.num_codebooks
DELAYS = tuple(range(NUM_STREAMS))
MAX_DELAY = max(DELAYS)
VOCABULARY_SIZE = FIRST_CODE + NUM_STREAMS * CODEC.codebook_size
SPEAKER_IDS = {speaker: FIRST_SPEAKER + index for index, speaker in enumerate(SPEAKERS)}
NULL_PROMPT = [SPEAK, BEGIN_AUDIO]
"""What a guidance lane holds: asked to speak, but not told what."""

IGNORE = -100
_SPECIALS = str.split("<pad> <end> <audio> <text> <speak> <transcribe> <continue>")


def slice_begin(stream: int) -> int:
    """First id of a stream's codes."""
    return FIRST_CODE + stream * CODEC.codebook_size


def stream_layout() -> dict[str, Any]:
    """The `stream_layout` object of config.json."""
    end = [{"token": END, "to": "end"}]
    return {
        "delays": list(DELAYS),
        "vocabulary_size": VOCABULARY_SIZE,
        "slices": [[slice_begin(k), slice_begin(k + 1)] for k in range(NUM_STREAMS)],
        "pad_token_ids": PAD,
        "text_slice": [FIRST_TEXT, FIRST_CODE],
        "delay_scope": "segment",
        "phases": [
            {"name": "text", "kind": "text", "begin_tokens": [BEGIN_TEXT], "transitions": end},
            {"name": "audio", "kind": "audio", "begin_tokens": [BEGIN_AUDIO], "transitions": end},
        ],
    }


def tasks() -> dict[str, list[int | str]]:
    """The `tasks` object of config.json."""
    return {
        "text_to_speech": [SPEAK, "voice", "text", BEGIN_AUDIO],
        "speech_to_text": [TRANSCRIBE, "audio", BEGIN_TEXT],
        "speech_continuation": [CONTINUE, "audio", BEGIN_AUDIO],
    }


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-pair tokenizer whose ids are the model's; text is read in lower case."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            # The voices were trained on words alone.
            normalizers.Replace(Regex(r"[.,;:!?\"()]"), " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    specials = list(_SPECIALS)
    specials += [f"<reserved_{i}>" for i in range(len(specials), FIRST_SPEAKER)]
    specials += [f"<{speaker}>" for speaker in SPEAKERS]
    specials += [f"<reserved_{i}>" for i in range(len(specials), FIRST_TEXT)]
    trainer = trainers.BpeTrainer(
        vocab_size=FIRST_CODE,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tokens(ids: Sequence[int]) -> NDArray[np.int32]:
    frames = np.full((len(ids), NUM_STREAMS), PAD, np.int32)
    frames[:, 0] = ids
    return frames


def _audio(codes: NDArray[np.integer]) -> NDArray[np.int32]:
    return (codes + [slice_begin(k) for k in range(NUM_STREAMS)]).astype(np.int32)


_FLUSH = _tokens([PAD] * MAX_DELAY)


def _audio_example(
    prompt: list[NDArray[np.int32]], codes: NDArray[np.integer]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    before = np.concatenate(prompt)
    frames = np.concatenate([before, _audio(codes), _tokens([END]), _FLUSH])
    steps = interleave(frames, DELAYS, [PAD] * NUM_STREAMS)[: len(frames)]
    targets = np.full_like(steps, IGNORE)
    first, count = len(before), len(codes)
    for stream, delay in enumerate(DELAYS):
        begin = first + delay
        stop = begin + count + (stream == 0)
        # Step p is predicted from step p - 1.
        targets[begin - 1 : stop - 1, stream] = steps[begin:stop, stream]
    return steps, targets


def speech_example(
    codes: NDArray[np.integer], text: Sequence[int], speaker: str | None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Text to speech: ids and targets, [num_steps, NUM_STREAMS] each; IGNORE is no target.

    Args:
        codes: [num_frames, NUM_STREAMS] of the codec.
        text: its ids; none for the null prompt.
        speaker: None leaves the voice open.
    """
    voice = [] if speaker is None else [SPEAKER_IDS[speaker]]
    return _audio_example([_tokens([SPEAK, *voice, *text, BEGIN_AUDIO])], codes)


def continuation_example(
    codes: NDArray[np.integer], split: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Speech continuation after `split` frames: ids and targets as in `speech_example`."""
    heard = [_tokens([CONTINUE]), _audio(codes[:split]), _FLUSH, _tokens([BEGIN_AUDIO])]
    return _audio_example(heard, codes[split:])


def transcription_example(
    codes: NDArray[np.integer], text: Sequence[int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Speech to text: ids and targets as in `speech_example`."""
    heard = [_tokens([TRANSCRIBE]), _audio(codes), _FLUSH, _tokens([BEGIN_TEXT])]
    frames = np.concatenate([*heard, _tokens([*text, END])])
    steps = interleave(frames, DELAYS, [PAD] * NUM_STREAMS)[: len(frames)]
    targets = np.full_like(steps, IGNORE)
    count = len(text) + 1
    targets[-count - 1 : -1, 0] = steps[-count:, 0]
    return steps, targets
