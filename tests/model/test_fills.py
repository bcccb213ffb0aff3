# SPDX-License-Identifier: Apache-2.0
"""Fills: what is refused, and those of the published families."""

from typing import Any

import pytest

from tests.support import stream_patterns
from vllm.unison.model.end_rules import StreamPattern
from vllm.unison.model.fills import NOTHING, Fill, StreamFills
from vllm.unison.model.layout import LayoutError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_id": -1}, "token_id must be None or at least 0, not -1"),
        ({"token_id": None}, "embeds must be False where token_id is None"),
        (
            {"token_id": None, "embeds": False, "sampled": True},
            "sampled must be False where token_id is None",
        ),
    ],
)
def test_a_fill_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=f"^{message}$"):
        Fill(**arguments)


@pytest.mark.parametrize("place", ["lead_in", "end", "tail"])
def test_an_emitted_column_has_an_id_everywhere(place: str) -> None:
    with pytest.raises(LayoutError, match=rf"^{place}\.token_id must be an id"):
        StreamFills(**{place: NOTHING})


# Per family: text, lead-in, end and tail of the last stream, with "+" where the id embeds and "?"
# where the sampler decides. "." is no such place, "-" no id.
PUBLISHED = [
    (stream_patterns.musicgen(), ". 2048+ . 2048+"),
    (stream_patterns.higgs_3(), "- 1024+ . 1025+?"),
    (stream_patterns.higgs_2(), "- 1024+ 1025+ 1025+"),
    (stream_patterns.dia(), ". 1026+ 1024+ 1025+"),
    (stream_patterns.parler(), ". 1025+ 1024+ 1024+"),
    (stream_patterns.zonos(), ". 1025+ 1024+ 1025+"),
    (stream_patterns.moss(), "1024+ 1024+ . 1024+"),
    (stream_patterns.opuslm(), "0 0 . 0?"),
    (stream_patterns.bagpiper(), "0 159367+? . 159367+?"),
    (stream_patterns.csm(), ". . . ."),
]


@pytest.mark.parametrize(("pattern", "expected"), PUBLISHED)
def test_the_published_fills_can_be_said(pattern: StreamPattern, expected: str) -> None:
    last = pattern.fills[-1]

    def shown(fill: Fill | None) -> str:
        if fill is None:
            return "."
        token = "-" if fill.token_id is None else str(fill.token_id)
        return token + "+" * fill.embeds + "?" * fill.sampled

    assert " ".join(map(shown, (last.text, last.lead_in, last.end, last.tail))) == expected
    assert set(last.named().values()) <= {last.text, last.lead_in, last.end, last.tail}
