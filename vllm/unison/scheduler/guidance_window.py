# SPDX-License-Identifier: Apache-2.0
"""When a request is guided: which steps have guidance lanes, as far as the scheduler can know.

With asynchronous scheduling the scheduler plans a step before the tokens of the last one are known.
A step whose guidance depends on them is not planned until they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.unison.model.phases import PhaseTable, StateKind

if TYPE_CHECKING:
    from vllm.unison.scheduler.sequence_group import SequenceGroup

_AUDIO = frozenset({StateKind.AUDIO, StateKind.FLUSH})


@dataclass(frozen=True)
class Guided:
    """Guidance of the step that emits a token.

    Attributes:
        is_guided: whether the step has guidance lanes.
        stretch_start: position of the conditional lane at which the guided stretch begins (lanes
            hold what was emitted since, whether or not it was guided).
        frame: steps since stretch_start.
    """

    is_guided: bool
    stretch_start: int
    frame: int


@dataclass(frozen=True)
class _Decision:
    """Whether a token is audio.

    Attributes:
        is_audio: None if it is not known yet.
        starts_after: steps from the request's known tokens to the start of the audio segment; None
            if it has begun before them.
    """

    is_audio: bool | None
    starts_after: int | None


NOT_GUIDED = Guided(False, 0, 0)


class GuidanceWindow:
    """Answers, for each step, whether a group is guided.

    Args:
        table: the model's phase table, or None for a single-stream model.
    """

    def __init__(self, table: PhaseTable | None) -> None:
        self._table = table
        self._outcomes: dict[tuple[int, int], frozenset[tuple[int, int | None]]] = {}
        self._decisions: dict[tuple[int, int], _Decision] = {}

    def of_next_token(self, group: SequenceGroup) -> Guided | None:
        """Guidance of the token that the next step emits; None if that is not known yet."""
        main = group.main
        in_flight = main.num_output_placeholders
        position = main.num_tokens + in_flight
        inputs = group.inputs
        if self._table is None or not inputs.audio_only:
            start = main.num_prompt_tokens
        else:
            assert main.streams is not None
            decision = self._decide(main.streams.state, in_flight)
            if decision.is_audio is None:
                return None
            if not decision.is_audio:
                return NOT_GUIDED
            start = main.streams.segment_start
            if decision.starts_after is not None:
                start = main.num_tokens + decision.starts_after
        frame = position - start
        last = None if inputs.last is None else inputs.last + group.max_delay
        inside = frame >= inputs.first and (last is None or frame <= last)
        return Guided(inside, start, frame)

    def _decide(self, state: int, in_flight: int) -> _Decision:
        """What is known of the token after `in_flight` unknown ones, from a state on."""
        key = (state, in_flight)
        if key not in self._decisions:
            assert self._table is not None
            outcomes = self._outcomes_of(state, in_flight)
            kinds = {StateKind(int(self._table.kind[state])) for state, _ in outcomes}
            kinds.discard(StateKind.DONE)
            starts = {start for state, start in outcomes if int(self._table.kind[state]) in _AUDIO}
            if not kinds & _AUDIO:
                # Finished, or text whatever is in flight.
                decision = _Decision(False, None)
            elif not kinds <= _AUDIO or len(starts) > 1:
                decision = _Decision(None, None)
            else:
                decision = _Decision(True, starts.pop())
            self._decisions[key] = decision
        return self._decisions[key]

    def _outcomes_of(self, state: int, count: int) -> frozenset[tuple[int, int | None]]:
        """What `count` more tokens may lead to.

        Returns:
            States, each with the number of steps after which its audio segment begins; None if it
            has begun before.
        """
        key = (state, count)
        if key not in self._outcomes:
            assert self._table is not None
            outcomes: set[tuple[int, int | None]] = {(state, None)}
            for step in range(1, count + 1):
                outcomes = {
                    (after, step if begins else start)
                    for before, start in outcomes
                    for after, begins in self._moves(before)
                }
            self._outcomes[key] = frozenset(outcomes)
        return self._outcomes[key]

    def _moves(self, state: int) -> set[tuple[int, bool]]:
        """States that may follow a state, and whether an audio segment begins with them."""
        table = self._table
        assert table is not None
        moves = set()
        for after in table.successors(state):
            enters = int(table.kind[after]) == StateKind.AUDIO
            if not enters or int(table.kind[state]) != StateKind.AUDIO:
                moves.add((after, enters))
                continue
            following = {int(s) for s in table.next_state[state]}
            if after in following:
                moves.add((after, False))
            # Without delays a flush is over at once, and the next segment begins.
            flushes = {s for s in following if int(table.kind[s]) == StateKind.FLUSH}
            if any(int(table.after_flush[flush]) == after for flush in flushes):
                moves.add((after, True))
        return moves
