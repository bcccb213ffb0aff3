# SPDX-License-Identifier: Apache-2.0
"""Detokenization of stream 0."""

import numpy as np

from vllm.unison.frontend.detokenizer import text_only
from vllm.unison.messages.streams import StreamInputs


class Letters:
    """A detokenizer that remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def decode_next(self, token: int) -> str:
        self.given.append(token)
        return chr(token)


def inputs(text_slice: tuple[int, int] | None) -> StreamInputs:
    return StreamInputs(np.zeros((1, 1), np.int32), text_slice, num_flush_steps=0)


def test_only_text_ids_reach_the_detokenizer() -> None:
    detokenizer = Letters()
    wrapped = text_only(detokenizer, inputs((97, 100)))
    assert wrapped is detokenizer
    assert [wrapped.decode_next(token) for token in (96, 97, 99, 100, 0)] == ["", "a", "c", "", ""]
    assert detokenizer.given == [97, 99]


def test_a_model_without_text_has_none() -> None:
    wrapped = text_only(Letters(), inputs(None))
    assert [wrapped.decode_next(token) for token in (0, 97)] == ["", ""]


def test_single_stream_requests_keep_their_detokenizer() -> None:
    detokenizer = Letters()
    assert text_only(detokenizer, None).decode_next(150) == chr(150)
    assert "decode_next" not in vars(detokenizer)


def test_a_detokenizer_that_decodes_nothing_is_left_alone() -> None:
    nothing = object()
    assert text_only(nothing, inputs((0, 9))) is nothing
