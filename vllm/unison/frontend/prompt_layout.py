# SPDX-License-Identifier: Apache-2.0
"""Frames of a prompt, and the steps that the delay pattern makes of them.

The frames are laid out all together, or each stretch of audio on its own, with the layout's fills
before and after it. What is delayed past the prompt's last step, its *delayed suffix*, is emitted
beside the first generated tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm.unison.model.delay_pattern import interleave
from vllm.unison.model.layout import DelayScope, PhaseKind, StreamLayout
from vllm.unison.model.phases import NO_TOKEN, start_of_generation


@dataclass(frozen=True)
class StreamPrompt:
    """A prompt in steps.

    Attributes:
        token_ids: [num_prompt_tokens] ids of stream 0.
        auxiliary_ids: [num_prompt_tokens + max delay, num_streams - 1] int32 ids of the other
            streams; rows past the prompt are its suffix, with -1 in free cells.
    """

    token_ids: list[int]
    auxiliary_ids: NDArray[np.int32]


@dataclass(frozen=True)
class Piece:
    """A part of a prompt, as frames.

    Attributes:
        frames: [num_frames, num_streams] ids.
        is_audio: whether they are frames of audio, and not of tokens with pads beside them.
    """

    frames: NDArray[np.int32]
    is_audio: bool = False


def lay_out(layout: StreamLayout, pieces: Sequence[Piece]) -> StreamPrompt:
    """Lay a prompt's pieces, at least one, out in steps.

    Where delays run through the whole sequence, all frames are delayed together. Where they start
    anew in every segment, a piece of audio has steps of its own, in which each stream carries the
    layout's fills before and after its frames; only what generation goes on from stays open: audio
    at the prompt's end, or what follows the token that begins a phase of audio.
    """
    if layout.delay_scope is DelayScope.SEQUENCE:
        return apply_delay_pattern(layout, np.concatenate([piece.frames for piece in pieces]))
    state, _ = start_of_generation(layout, _primary_ids(pieces))
    goes_on = layout.phases[state].kind is PhaseKind.AUDIO
    rows: list[NDArray[np.int32]] = []
    num_closed = num_rows = 0
    for piece in pieces:
        is_closed = piece.is_audio and not (goes_on and piece is pieces[-1])
        rows.append(closed_segment(layout, piece.frames) if is_closed else piece.frames)
        num_rows += len(rows[-1])
        num_closed = num_rows if is_closed else num_closed
    frames = np.concatenate(rows)
    _, start = start_of_generation(layout, frames[:, 0].tolist())
    start = max(start, num_closed) if goes_on else num_rows
    opened = _delayed(layout, frames[start:], layout.lead_in.token_ids)
    steps = np.concatenate([frames[:start], opened])
    return StreamPrompt(frames[:, 0].tolist(), np.ascontiguousarray(steps[:, 1:]))


def _primary_ids(pieces: Sequence[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.frames[:, 0].tolist()]


def apply_delay_pattern(layout: StreamLayout, frames: NDArray[np.int32]) -> StreamPrompt:
    """Lay a prompt's frames [num_frames, num_streams] out in steps, all together."""
    steps = _delayed(layout, frames, layout.pad_token_ids)
    return StreamPrompt(frames[:, 0].tolist(), np.ascontiguousarray(steps[:, 1:]))


def closed_segment(layout: StreamLayout, frames: NDArray[np.int32]) -> NDArray[np.int32]:
    """A segment of audio [num_frames, num_streams] in steps, up to its last stream's last frame.

    Returns:
        [num_frames + max delay, num_streams] int32 ids; none for no frames.
    """
    steps = _delayed(layout, frames, layout.lead_in.token_ids)
    for stream, delay in enumerate(layout.delays):
        end = len(frames) + delay
        steps[end : end + 1, stream] = layout.end.token_ids[stream]
        steps[end + 1 :, stream] = layout.tail.token_ids[stream]
    return steps


def _delayed(
    layout: StreamLayout, frames: NDArray[np.int32], lead_in: Sequence[int]
) -> NDArray[np.int32]:
    """[num_frames + max delay, num_streams] steps of frames, NO_TOKEN after each stream's last."""
    steps = interleave(frames, layout.delays, lead_in)
    for stream, delay in enumerate(layout.delays):
        steps[len(frames) + delay :, stream] = NO_TOKEN
    return steps


def frames_of_tokens(layout: StreamLayout, token_ids: Sequence[int]) -> NDArray[np.int32]:
    """Frames that carry ids of stream 0 and pads beside them."""
    frames = np.empty((len(token_ids), layout.num_streams), np.int32)
    frames[:] = layout.pad_token_ids
    frames[:, 0] = token_ids
    return frames


def frames_of_codes(layout: StreamLayout, codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Frames of the codes [num_frames, num_columns] of all streams that have any.

    Raises:
        ValueError: if codes of some streams are missing.
    """
    missing = sorted(set(range(layout.num_streams)) - set(layout.codebook_streams))
    if missing and codes.shape[1] == len(layout.codebook_streams):
        raise ValueError(f"audio: the model's codec gives no ids for streams {missing}")
    frames = np.empty((len(codes), layout.num_streams), np.int32)
    for column, stream in enumerate(layout.coded_streams):
        frames[:, stream] = codes[:, column] + layout.slices[stream][0]
    return frames
