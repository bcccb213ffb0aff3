# SPDX-License-Identifier: Apache-2.0
"""The default model's ids, stream layout and prompts, and how a training example is laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from phones import PHONES, STRESS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from train_codec import CONFIG as CODEC

from vllm.unison.model.delay_pattern import interleave

PAD, END, BEGIN_AUDIO, BEGIN_TEXT, SPEAK, TRANSCRIBE, CONTINUE = range(7)
SPEAKERS = ("heart", "joe")
"""Voices that the model speaks with."""

FIRST_SPEAKER = 8
FIRST_TEXT = 16
CHARACTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.?!;:'-"
FIRST_CODE = 80
NUM_STREAMS = CODEC.num_codebooks
DELAYS = tuple(range(NUM_STREAMS))
MAX_DELAY = max(DELAYS)
SOUNDS = tuple(map(chr, range(0xE000, 0xE000 + len(PHONES) - 1 + len(STRESS))))
"""Signs, of Unicode's private use, for all phones but the pause, then for the marks of stress."""

FIRST_SOUND = FIRST_CODE + NUM_STREAMS * CODEC.codebook_size
VOCABULARY_SIZE = FIRST_SOUND + 48
"""With some rows to spare after the sounds."""

SPEAKER_IDS = {speaker: FIRST_SPEAKER + index for index, speaker in enumerate(SPEAKERS)}
NULL_PROMPT = [SPEAK, BEGIN_AUDIO]
"""What a guidance lane holds: asked to speak, but not told what."""

IGNORE = -100
NOWHERE = -1.0
"""Where a step has no place to look at."""

_IDS = {character: FIRST_TEXT + index for index, character in enumerate(CHARACTERS)}
_IDS |= {sign: FIRST_SOUND + index for index, sign in enumerate(SOUNDS)}
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


def make_tokenizer() -> Tokenizer:
    """A tokenizer with the model's ids, whose tokens are characters and signs of sounds."""
    specials = list(_SPECIALS)
    specials += [f"<reserved_{i}>" for i in range(len(specials), FIRST_SPEAKER)]
    specials += [f"<{speaker}>" for speaker in SPEAKERS]
    specials += [f"<reserved_{i}>" for i in range(len(specials), FIRST_TEXT)]
    names = specials + list(CHARACTERS)
    names += [f"<reserved_{i}>" for i in range(len(names), FIRST_CODE)]
    vocabulary = {name: index for index, name in enumerate(names)}
    vocabulary |= {sign: FIRST_SOUND + index for index, sign in enumerate(SOUNDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Replace("’", "'"),
            normalizers.Replace(Regex("[–—]"), "-"),
            normalizers.Replace(Regex(f"[^{SOUNDS[0]}-{SOUNDS[-1]}{CHARACTERS}]"), " "),
            normalizers.Replace(Regex(" +"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def text_ids(text: str) -> list[int]:
    """What the tokenizer makes of a text that `spoken_text` and perhaps a lexicon made."""
    return [_IDS[character] for character in text]


@dataclass(frozen=True)
class Example:
    """A sequence to learn.

    Attributes:
        steps: [num_steps, NUM_STREAMS] ids.
        targets: the same shape; what each step predicts, or IGNORE.
        focus: [num_steps] step that a step should look at, with fractions; or NOWHERE.
        reach: standard deviation in steps of where it may look.
        region: [begin, end) of the steps that may be looked at.
    """

    steps: NDArray[np.int32]
    targets: NDArray[np.int32]
    focus: NDArray[np.float32]
    reach: float = 1.5
    region: tuple[int, int] = (0, 0)


def _tokens(ids: Sequence[int]) -> NDArray[np.int32]:
    frames = np.full((len(ids), NUM_STREAMS), PAD, np.int32)
    frames[:, 0] = ids
    return frames


def _audio(codes: NDArray[np.integer]) -> NDArray[np.int32]:
    ids = codes + [slice_begin(k) for k in range(NUM_STREAMS)]
    return np.where(codes < 0, PAD, ids).astype(np.int32)


_FLUSH = _tokens([PAD] * MAX_DELAY)


def _audio_example(
    prompt: list[NDArray[np.int32]], codes: NDArray[np.integer]
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    before = np.concatenate(prompt)
    frames = np.concatenate([before, _audio(codes), _tokens([END]), _FLUSH])
    steps = interleave(frames, DELAYS, [PAD] * NUM_STREAMS)[: len(frames)]
    targets = np.full_like(steps, IGNORE)
    first, count = len(before), len(codes)
    for stream, delay in enumerate(DELAYS):
        begin = first + delay
        stop = begin + count + (stream == 0)
        # Step p is predicted from step p - 1.
        wanted = steps[begin:stop, stream]
        targets[begin - 1 : stop - 1, stream] = np.where(wanted == PAD, IGNORE, wanted)
    return steps, targets, first


def speech_example(
    codes: NDArray[np.integer],
    text: Sequence[int],
    speaker: str | None,
    places: NDArray[np.floating] | None = None,
) -> Example:
    """Text to speech.

    Args:
        codes: [num_frames, NUM_STREAMS] of the codec; negative ones are not known, nor learned.
        text: its ids; none for the null prompt.
        speaker: None leaves the voice open.
        places: [num_frames] letter, with fractions, that is said in a frame; NOWHERE if unknown.
    """
    voice = [] if speaker is None else [SPEAKER_IDS[speaker]]
    steps, targets, first = _audio_example([_tokens([SPEAK, *voice, *text, BEGIN_AUDIO])], codes)
    focus = np.full(len(steps), NOWHERE, np.float32)
    begin = 1 + len(voice)
    if places is not None and len(text):
        # The step that predicts a frame looks at the frame's letter.
        known = np.where(places >= 0, places + begin, NOWHERE)
        focus[first - 1 : first - 1 + len(codes)] = known
    return Example(steps, targets, focus, 1.5, (begin, begin + len(text)))


def continuation_example(codes: NDArray[np.integer], split: int) -> Example:
    """Speech continuation after `split` frames."""
    heard = [_tokens([CONTINUE]), _audio(codes[:split]), _FLUSH, _tokens([BEGIN_AUDIO])]
    steps, targets, _ = _audio_example(heard, codes[split:])
    return Example(steps, targets, np.full(len(steps), NOWHERE, np.float32))


def transcription_example(
    codes: NDArray[np.integer],
    text: Sequence[int],
    frames: NDArray[np.floating] | None = None,
) -> Example:
    """Speech to text.

    Args:
        codes, text: as of `speech_example`.
        frames: [len(text)] frame, with fractions, in which each letter is said.
    """
    heard = [_tokens([TRANSCRIBE]), _audio(codes), _FLUSH, _tokens([BEGIN_TEXT])]
    rows = np.concatenate([*heard, _tokens([*text, END])])
    steps = interleave(rows, DELAYS, [PAD] * NUM_STREAMS)[: len(rows)]
    targets = np.full_like(steps, IGNORE)
    count = len(text) + 1
    targets[-count - 1 : -1, 0] = steps[-count:, 0]
    focus = np.full(len(steps), NOWHERE, np.float32)
    if frames is not None:
        focus[-count - 1 : -2] = frames + 1
    return Example(steps, targets, focus, 3.0, (1, 1 + len(codes)))
