# SPDX-License-Identifier: Apache-2.0
"""Detokenization of stream 0: text ids become text, codec ids and pads do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.unison.messages.streams import StreamInputs


def text_only(detokenizer: Any, inputs: StreamInputs | None) -> Any:
    """Make a detokenizer of vLLM skip all ids that are not text; returns it.

    A codec id has no text, and a decode stream that is fed ids without text holds on to them all
    and decodes them again at each step.
    """
    if inputs is None or not hasattr(detokenizer, "decode_next"):
        return detokenizer
    decode = detokenizer.decode_next
    begin, end = inputs.text_slice or (0, 0)

    def decode_next(token: int) -> str:
        return decode(token) if begin <= token < end else ""

    detokenizer.decode_next = decode_next
    return detokenizer
