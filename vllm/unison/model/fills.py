# SPDX-License-Identifier: Apache-2.0
"""What a stream carries where it has no frame, as values.

There are four such places: beside text, before the first frame (lead-in), once right after the last
frame (end), and after that (tail). What is called a pad in published models is any of them. A fill
has a row of the embedding like every other id, or adds nothing to the input; and it is forced, or
left to the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm.unison.model.layout import LayoutError


@dataclass(frozen=True)
class Fill:
    """What a stream carries in one kind of place.

    Args:
        token_id: the id; None where the stream carries no id at all, which adds nothing.
        embeds: whether the id's row is added to the input embedding.
        sampled: whether the sampler decides, because the model was trained to emit the id itself.
            False: the id is forced, whatever the logits say.

    Raises:
        LayoutError: naming the field and what is accepted.
    """

    token_id: int | None
    embeds: bool = True
    sampled: bool = False

    def __post_init__(self) -> None:
        if self.token_id is None:
            for field in ("embeds", "sampled"):
                if getattr(self, field):
                    raise LayoutError(f"{field} must be False where token_id is None")
        elif self.token_id < 0:
            raise LayoutError(f"token_id must be None or at least 0, not {self.token_id}")


NOTHING = Fill(None, embeds=False)
"""No id, and nothing added to the input."""


@dataclass(frozen=True)
class StreamFills:
    """The fills of one stream; None for a place that the model's streams never have.

    Args:
        text: beside positions of text.
        lead_in: before its first frame, in the steps that the stream is delayed.
        end: in the step right after its last frame; None: as the tail.
        tail: in the steps after that.

    Raises:
        LayoutError: naming the field and what is accepted.
    """

    text: Fill | None = None
    lead_in: Fill | None = None
    end: Fill | None = None
    tail: Fill | None = None

    def __post_init__(self) -> None:
        for field in ("lead_in", "end", "tail"):
            fill = getattr(self, field)
            # These stand in the columns that the model emits, and a column has an id per stream.
            if fill is not None and fill.token_id is None:
                raise LayoutError(f"{field}.token_id must be an id; only text may have None")

    def named(self) -> dict[str, Fill]:
        """The fills that there are, by the name of their place."""
        places = {"text": self.text, "lead_in": self.lead_in, "end": self.end, "tail": self.tail}
        return {name: fill for name, fill in places.items() if fill is not None}
