# SPDX-License-Identifier: Apache-2.0
"""Ids and codes as requests give them, checked by the layout that they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.unison.frontend.prompt_layout import StreamPrompt, frames_of_tokens
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import NO_TOKEN
from vllm.unison.model.spec import TextEncoderSpec


def checked_tokens(
    layout: StreamLayout, token_ids: Sequence[int], field: str = "prompt_token_ids"
) -> NDArray[np.int32]:
    """Frames of ids of stream 0, with pads beside them.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    ids = np.asarray(token_ids, np.int64)
    wrong = ids[(ids < 0) | (ids >= layout.vocabulary_size)]
    if len(wrong):
        raise ValueError(f"{field} must be in [0, {layout.vocabulary_size}), not {int(wrong[0])}")
    return frames_of_tokens(layout, ids.tolist())


def checked_codes(layout: StreamLayout, value: Any) -> NDArray[np.int32]:
    """The codes [num_frames, num_columns] of all streams that have any.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    codes, streams = _array("codes", value), layout.coded_streams
    right_shape = codes.ndim == 2 and len(codes) > 0 and codes.shape[1] == len(streams)
    if not right_shape or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(
            f"codes must be integers of shape [num_frames, {len(streams)}], "
            f"not {codes.dtype} of shape {list(codes.shape)}"
        )
    for column, stream in enumerate(streams):
        begin, end = layout.slices[stream]
        values = codes[:, column]
        if (wrong := values[(values < 0) | (values >= end - begin)]).size:
            where = "" if streams == layout.codebook_streams else f" of column {column}"
            raise ValueError(f"codes{where} must be in [0, {end - begin}), not {int(wrong[0])}")
    return codes.astype(np.int32)


def prompt_of_steps(layout: StreamLayout, token_ids: list[int], auxiliary: Any) -> StreamPrompt:
    """The prompt whose streams are all given in steps.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    ids = _array("auxiliary_token_ids", auxiliary)
    lengths = range(len(token_ids), len(token_ids) + layout.max_delay + 1)
    right_shape = ids.ndim == 2 and ids.shape[1] == layout.num_streams - 1
    if not right_shape or len(ids) not in lengths or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"auxiliary_token_ids must be integers of shape [n, {layout.num_streams - 1}] with "
            f"n in [{lengths[0]}, {lengths[-1]}], not {ids.dtype} of shape {list(ids.shape)}"
        )
    for column, stream in enumerate(range(1, layout.num_streams)):
        begin, end = layout.slices[stream]
        values = ids[:, column]
        known = ((values >= begin) & (values < end)) | (values == layout.pad_token_ids[stream])
        known[len(token_ids) :] |= values[len(token_ids) :] == NO_TOKEN
        if not known.all():
            wrong = int(values[~known][0])
            raise ValueError(
                f"auxiliary_token_ids of stream {stream} must be in [{begin}, {end}) or the "
                f"pad {layout.pad_token_ids[stream]} (past the prompt also {NO_TOKEN}, free), "
                f"not {wrong}"
            )
    checked_tokens(layout, token_ids)
    return StreamPrompt(list(token_ids), ids.astype(np.int32))


def checked_encoder_ids(
    encoder: TextEncoderSpec, text: str | None, ids: Sequence[int], field: str
) -> list[int]:
    """A text's ids for the model's text encoder, the tokenizer's end token included.

    Args:
        encoder: what it takes.
        text: that the ids were made from, if they were not given themselves.
        ids: of the text.
        field: of the request, for errors.

    Raises:
        ValueError: naming the field.
    """
    if text is not None and not text.strip():
        raise ValueError(f"{field} must hold text, not {text!r}")
    if not ids:
        raise ValueError(f"{field} must have at least one token")
    for token in ids:
        is_integer = isinstance(token, (int, np.integer)) and not isinstance(token, bool)
        if not is_integer or not 0 <= token < encoder.vocabulary_size:
            raise ValueError(
                f"{field}: token ids of the text must be in [0, {encoder.vocabulary_size}), "
                f"not {token!r}"
            )
    if len(ids) > encoder.max_ids:
        raise ValueError(
            f"{field} must have at most {encoder.max_ids} tokens, the end token included, "
            f"not {len(ids)}"
        )
    return [int(token) for token in ids]


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, all rows of one length") from error
