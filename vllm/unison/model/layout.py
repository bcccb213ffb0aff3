# SPDX-License-Identifier: Apache-2.0
"""The stream layout of a model, as a value that is validated once when it is built.

A layout says everything the engine must know about the tokens of a multi-stream model: how many
streams there are and how far each is delayed, which ids each stream may emit, which ids are pads,
which phases a request goes through and which tokens move it from one phase to the next. It is read
from the `stream_layout` object of a checkpoint's config.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

END = "end"
"""Name of the pseudo-phase in which a request is finished."""

MAX_STREAMS = 64

FAIL_REQUEST = "fail"
"""A frame with a code outside its codebook fails its request."""
DROP_FRAME = "drop"
"""A frame with a code outside its codebook is left out of the audio."""


class LayoutError(ValueError):
    """A stream layout that contradicts itself; the message names the field and what is accepted."""


class PhaseKind(IntEnum):
    """What a phase emits: ordinary text on stream 0, or codec frames on all streams."""

    TEXT = 0
    AUDIO = 1


class DelayScope(IntEnum):
    """Whether delays run through the whole sequence or start anew in every audio segment.

    SEQUENCE: the delayed suffix of an audio segment lies beside the tokens that follow it.
    SEGMENT: stream 0 is padded after an audio segment until its last stream has caught up.
    """

    SEQUENCE = 0
    SEGMENT = 1


@dataclass(frozen=True)
class PlaceFill:
    """What the streams carry in one kind of place of an audio segment where they have no frame.

    Attributes:
        token_ids: per stream the id.
        sampled: per stream whether the sampler decides, because the model was trained to emit the
            id itself: it is then one more candidate of the stream. False: the id is forced.
    """

    token_ids: tuple[int, ...]
    sampled: tuple[bool, ...]


@dataclass(frozen=True)
class AudioFills:
    """The fills of audio segments, by place.

    Attributes:
        lead_in: before a stream's first frame, in the steps that it is delayed. None: its pad,
            forced.
        end: in the step right after its last frame. None: as the tail.
        tail: in the steps after that. None: its pad, forced.
    """

    lead_in: PlaceFill | None = None
    end: PlaceFill | None = None
    tail: PlaceFill | None = None


@dataclass(frozen=True)
class AudioEnd:
    """How the tokens that leave an audio phase end its segment.

    Attributes:
        any_stream: whether the tail's id on any stream is the first sign of the end. From the next
            step on it is forced on one stream after another, as they are delayed, and the segment
            ends with the first step that holds it on all. False: stream 0 says it alone.
        after_tail: whether the token ends all streams at once, after a tail that they emit
            themselves. False: it ends stream 0, and each other stream as many steps later as it is
            delayed.
        first_step: first step of the segment, counted from where generation starts in it, at which
            the tokens count. A text phase may have one too, counted from the prompt's end.
        forbids_earlier: whether they are masked before; False: they are emitted and ignored.
        extra_steps: steps that the segment runs on after its last frame's, 0 or 1.
        closing: ids that stream 0 is forced to emit after that.
    """

    after_tail: bool = False
    first_step: int = 0
    forbids_earlier: bool = True
    extra_steps: int = 0
    closing: tuple[int, ...] = ()
    any_stream: bool = False


@dataclass(frozen=True)
class Transition:
    """What happens when stream 0 emits `token` in a phase.

    The tokens of `forced` are emitted next, one per step, whatever the logits say; then the request
    is in phase `to`, or finished if `to` is "end".
    """

    token: int
    to: str
    forced: tuple[int, ...] = ()


@dataclass(frozen=True)
class Phase:
    """One phase of a request.

    A prompt whose last begin token is in `begin_tokens` starts generation in this phase. Of
    `end_rule` text phases have `first_step` only. A text phase that `chooses` emits no text: its
    transitions' tokens are all there is to choose from.
    """

    name: str
    kind: PhaseKind
    begin_tokens: tuple[int, ...] = ()
    transitions: tuple[Transition, ...] = ()
    end_rule: AudioEnd = AudioEnd()
    chooses: bool = False


@dataclass(frozen=True)
class StreamLayout:
    """Streams, delays, vocabulary slices, special tokens and phases of a model.

    Args:
        delays: steps that each stream runs behind, at least 0, and 0 for stream 0; its length is
            the number of streams.
        vocabulary_size: number of ids the backbone embeds.
        slices: per stream the half-open range [begin, end) of codec ids that it may emit.
        pad_token_ids: per stream the id it carries where it has nothing to say.
        phases: the phases, at least one; the first is where generation starts when the prompt holds
            no begin token.
        text_slice: half-open range of text ids, or None for a model without text.
        codebook_streams: the streams whose ids are the codec's codes, in the codec's order; a code
            is the id minus the begin of the stream's slice. Default: all streams.
        delay_scope: see DelayScope.
        outside_codebook: what becomes of a frame in which a codebook stream carries an id outside
            its slice (a pad, an end token): FAIL_REQUEST, DROP_FRAME, or a code that takes the
            place of each such id. The codec never sees one.
        fills: what the streams carry in audio segments where they have no frame.
        more_candidates: per stream the ids outside its slice that the sampler may choose in audio
            where it chooses a code, and that mean nothing there; empty: none of any stream.

    Raises:
        LayoutError: naming the field and the accepted range.
    """

    delays: tuple[int, ...]
    vocabulary_size: int
    slices: tuple[tuple[int, int], ...]
    pad_token_ids: tuple[int, ...]
    phases: tuple[Phase, ...]
    text_slice: tuple[int, int] | None = None
    codebook_streams: tuple[int, ...] = ()
    delay_scope: DelayScope = DelayScope.SEQUENCE
    outside_codebook: str | int = FAIL_REQUEST
    fills: AudioFills = AudioFills()
    more_candidates: tuple[tuple[int, ...], ...] = ()
    _phase_by_name: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.codebook_streams:
            object.__setattr__(self, "codebook_streams", tuple(range(len(self.delays))))
        object.__setattr__(self, "_phase_by_name", {p.name: i for i, p in enumerate(self.phases)})
        _validate(self)

    @property
    def num_streams(self) -> int:
        """Number of streams K."""
        return len(self.delays)

    @cached_property
    def coded_streams(self) -> tuple[int, ...]:
        """The streams whose codes make a frame of audio: the codec's, in its order, or all streams
        where some of them are not the codec's."""
        all_streams = tuple(range(self.num_streams))
        has_others = set(self.codebook_streams) != set(all_streams)
        return all_streams if has_others else self.codebook_streams

    @property
    def max_delay(self) -> int:
        """Steps after which the last stream starts."""
        return max(self.delays)

    @property
    def num_flush_steps(self) -> int:
        """Most steps a request runs on past its limit, until its last stream has ended too."""
        ends = [phase.end_rule for phase in self.phases if phase.kind is PhaseKind.AUDIO]
        return max((self.max_delay + end.extra_steps + len(end.closing) for end in ends), default=0)

    @cached_property
    def pads(self) -> PlaceFill:
        """The pads as a fill."""
        return PlaceFill(self.pad_token_ids, (False,) * self.num_streams)

    @property
    def lead_in(self) -> PlaceFill:
        """What the streams carry before their first frame."""
        return self.fills.lead_in or self.pads

    @property
    def tail(self) -> PlaceFill:
        """What the streams carry from the second step after their last frame on."""
        return self.fills.tail or self.pads

    @property
    def end(self) -> PlaceFill:
        """What the streams carry in the step after their last frame."""
        return self.fills.end or self.tail

    def sampled_fills(self, stream: int) -> list[int]:
        """Ids of fills that are candidates of a stream in audio, sorted."""
        places = (self.lead_in, self.end, self.tail)
        return sorted({place.token_ids[stream] for place in places if place.sampled[stream]})

    def more_than_codes(self, stream: int) -> list[int]:
        """Ids that a stream may emit in audio besides its codes, but for what ends it; sorted."""
        more = self.more_candidates[stream] if self.more_candidates else ()
        return sorted({*self.sampled_fills(stream), *more})

    def end_ids(self, phase: Phase) -> tuple[int, ...]:
        """Per stream the id that may end an audio phase that any stream may end; else empty."""
        return self.tail.token_ids if phase.end_rule.any_stream else ()

    @property
    def has_audio(self) -> bool:
        """Whether any phase emits codec frames."""
        return any(phase.kind is PhaseKind.AUDIO for phase in self.phases)

    @property
    def has_text(self) -> bool:
        """Whether any phase emits text."""
        return any(phase.kind is PhaseKind.TEXT for phase in self.phases)

    @property
    def text_can_follow_audio(self) -> bool:
        """Whether a request may emit text after it emitted audio."""
        texts = {phase.name for phase in self.phases if phase.kind is PhaseKind.TEXT}
        return any(
            transition.to in texts
            for phase in self.phases
            if phase.kind is PhaseKind.AUDIO
            for transition in phase.transitions
        )

    def phase_index(self, name: str) -> int:
        """Index of the phase called `name`; KeyError if there is none."""
        return self._phase_by_name[name]

    def is_text(self, token: int) -> bool:
        """Whether `token` is a text id."""
        return self.text_slice is not None and self.text_slice[0] <= token < self.text_slice[1]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "StreamLayout":
        """Build a layout from the `stream_layout` object of a config.json.

        `pad_token_ids` may be one id for all streams. Unknown keys are refused.
        """
        known = {
            "delays", "vocabulary_size", "slices", "pad_token_ids", "phases", "text_slice",
            "codebook_streams", "delay_scope", "outside_codebook", "fills", "more_candidates",
        }  # fmt: skip
        _refuse_unknown("stream_layout", data, known)
        for name in ("delays", "vocabulary_size", "slices", "pad_token_ids", "phases"):
            if name not in data:
                raise LayoutError(f"stream_layout.{name} is missing")
        delays = _integers("stream_layout.delays", data["delays"])
        pads = data["pad_token_ids"]
        pads = [pads] * len(delays) if isinstance(pads, int) else pads
        scope = str(data.get("delay_scope", "sequence")).upper()
        if scope not in DelayScope.__members__:
            raise LayoutError(
                f"stream_layout.delay_scope must be 'sequence' or 'segment', not {scope.lower()!r}"
            )
        text_slice = data.get("text_slice")
        return cls(
            delays=delays,
            vocabulary_size=_integer("stream_layout.vocabulary_size", data["vocabulary_size"]),
            slices=tuple(
                _range(f"stream_layout.slices[{k}]", pair)
                for k, pair in enumerate(_list("stream_layout.slices", data["slices"]))
            ),
            pad_token_ids=_integers("stream_layout.pad_token_ids", pads),
            phases=tuple(
                _phase(f"stream_layout.phases[{i}]", p)
                for i, p in enumerate(_list("stream_layout.phases", data["phases"]))
            ),
            text_slice=None
            if text_slice is None
            else _range("stream_layout.text_slice", text_slice),
            codebook_streams=_integers(
                "stream_layout.codebook_streams", data.get("codebook_streams", ())
            ),
            delay_scope=DelayScope[scope],
            outside_codebook=data.get("outside_codebook", FAIL_REQUEST),
            fills=_fills("stream_layout.fills", data.get("fills"), len(delays)),
            more_candidates=tuple(
                _integers(f"stream_layout.more_candidates[{k}]", ids)
                for k, ids in enumerate(
                    _list("stream_layout.more_candidates", data.get("more_candidates", ()))
                )
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`, made of plain JSON values."""
        fills = {
            name: {"token_ids": list(place.token_ids), "sampled": list(place.sampled)}
            for name in _PLACES
            if (place := getattr(self.fills, name)) is not None
        }
        more: dict[str, Any] = {"fills": fills} if fills else {}
        if self.more_candidates:
            more["more_candidates"] = [list(ids) for ids in self.more_candidates]
        return more | {
            "delays": list(self.delays),
            "vocabulary_size": self.vocabulary_size,
            "slices": [list(pair) for pair in self.slices],
            "pad_token_ids": list(self.pad_token_ids),
            "text_slice": None if self.text_slice is None else list(self.text_slice),
            "codebook_streams": list(self.codebook_streams),
            "delay_scope": self.delay_scope.name.lower(),
            "outside_codebook": self.outside_codebook,
            "phases": [
                {
                    "name": p.name,
                    "kind": p.kind.name.lower(),
                    "begin_tokens": list(p.begin_tokens),
                    "transitions": [
                        {"token": t.token, "to": t.to, "forced": list(t.forced)}
                        for t in p.transitions
                    ],
                    **_end_to_dict(p.end_rule),
                }
                for p in self.phases
            ],
        }


_PLACES = ("lead_in", "end", "tail")
_ID_ON_PRIMARY, _AFTER_TAIL, _ANY_STREAM = "id_on_primary", "after_tail", "any_stream"


def _validate(layout: StreamLayout) -> None:
    streams = layout.num_streams
    if not 1 <= streams <= MAX_STREAMS:
        raise LayoutError(
            f"delays must have 1 to {MAX_STREAMS} entries, one per stream, not {streams}"
        )
    for k, delay in enumerate(layout.delays):
        if delay < 0:
            raise LayoutError(f"delays[{k}] must be at least 0, not {delay}")
    if layout.delays[0] != 0:
        raise LayoutError(
            f"delays[0] must be 0, not {layout.delays[0]}: stream 0 leads and ends the others"
        )
    if layout.vocabulary_size < 1:
        raise LayoutError(f"vocabulary_size must be at least 1, not {layout.vocabulary_size}")
    for name, values in (("slices", layout.slices), ("pad_token_ids", layout.pad_token_ids)):
        if len(values) != streams:
            raise LayoutError(
                f"{name} must have {streams} entries, one per stream, not {len(values)}"
            )
    for k, pair in enumerate(layout.slices):
        _check_range(f"slices[{k}]", pair, layout.vocabulary_size)
    for k, pad in enumerate(layout.pad_token_ids):
        _check_token(f"pad_token_ids[{k}]", pad, layout.vocabulary_size)
        begin, end = layout.slices[k]
        if begin <= pad < end:
            raise LayoutError(
                f"pad_token_ids[{k}] must lie outside slices[{k}] = [{begin}, {end}), not {pad}"
            )
    if layout.text_slice is not None:
        _check_range("text_slice", layout.text_slice, layout.vocabulary_size)
        for k, (begin, end) in enumerate(layout.slices):
            if begin < layout.text_slice[1] and layout.text_slice[0] < end:
                raise LayoutError(f"text_slice must not overlap slices[{k}] = [{begin}, {end})")
    if len(set(layout.codebook_streams)) != len(layout.codebook_streams):
        raise LayoutError("codebook_streams must not repeat a stream")
    for i, stream in enumerate(layout.codebook_streams):
        if not 0 <= stream < streams:
            raise LayoutError(f"codebook_streams[{i}] must be in [0, {streams}), not {stream}")
    smallest = min(
        layout.slices[stream][1] - layout.slices[stream][0] for stream in layout.codebook_streams
    )
    rule = layout.outside_codebook
    is_code = isinstance(rule, int) and not isinstance(rule, bool) and 0 <= rule < smallest
    if not is_code and rule not in (FAIL_REQUEST, DROP_FRAME):
        raise LayoutError(
            f"outside_codebook must be {FAIL_REQUEST!r}, {DROP_FRAME!r} or a code in "
            f"[0, {smallest - 1}], not {rule!r}"
        )
    _validate_fills(layout)
    _validate_more_candidates(layout)
    _validate_phases(layout)


def _validate_fills(layout: StreamLayout) -> None:
    for name in _PLACES:
        place: PlaceFill | None = getattr(layout.fills, name)
        if place is None:
            continue
        for field_name in ("token_ids", "sampled"):
            if (count := len(getattr(place, field_name))) != layout.num_streams:
                raise LayoutError(
                    f"fills.{name}.{field_name} must have {layout.num_streams} entries, one per "
                    f"stream, not {count}"
                )
        for k, token in enumerate(place.token_ids):
            _check_token(f"fills.{name}.token_ids[{k}]", token, layout.vocabulary_size)
            begin, end = layout.slices[k]
            if begin <= token < end:
                raise LayoutError(
                    f"fills.{name}.token_ids[{k}] must lie outside slices[{k}] = "
                    f"[{begin}, {end}), not {token}"
                )


def _validate_more_candidates(layout: StreamLayout) -> None:
    if len(layout.more_candidates) not in (0, layout.num_streams):
        raise LayoutError(
            f"more_candidates must have {layout.num_streams} entries, one per stream, or none, "
            f"not {len(layout.more_candidates)}"
        )
    for k, ids in enumerate(layout.more_candidates):
        begin, end = layout.slices[k]
        for i, token in enumerate(ids):
            name = f"more_candidates[{k}][{i}]"
            _check_token(name, token, layout.vocabulary_size)
            if begin <= token < end:
                raise LayoutError(
                    f"{name} must lie outside slices[{k}] = [{begin}, {end}), not {token}"
                )


def _validate_phases(layout: StreamLayout) -> None:
    if not layout.phases:
        raise LayoutError("phases must have at least one entry")
    names = [phase.name for phase in layout.phases]
    if len(set(names)) != len(names):
        raise LayoutError("phases must have different names")
    begins: set[int] = set()
    for i, phase in enumerate(layout.phases):
        where = f"phases[{i}]"
        if phase.name == END or not phase.name:
            raise LayoutError(f"{where}.name must be neither empty nor {END!r}")
        if phase.kind is PhaseKind.TEXT and layout.text_slice is None:
            raise LayoutError(f"{where}.kind is text, so text_slice must be given")
        for j, token in enumerate(phase.begin_tokens):
            _check_token(f"{where}.begin_tokens[{j}]", token, layout.vocabulary_size)
            if token in begins:
                raise LayoutError(f"{where}.begin_tokens[{j}] = {token} begins another phase too")
            begins.add(token)
        seen: set[int] = set()
        for j, transition in enumerate(phase.transitions):
            spot = f"{where}.transitions[{j}]"
            _check_token(f"{spot}.token", transition.token, layout.vocabulary_size)
            if transition.token in seen:
                raise LayoutError(f"{spot}.token = {transition.token} stands twice in {where}")
            seen.add(transition.token)
            own = layout.slices[0] if phase.kind is PhaseKind.AUDIO else layout.text_slice
            if own is not None and own[0] <= transition.token < own[1]:
                raise LayoutError(
                    f"{spot}.token must lie outside the ids that {phase.name!r} emits, "
                    f"[{own[0]}, {own[1]}), not {transition.token}"
                )
            if transition.to != END and transition.to not in names:
                raise LayoutError(
                    f"{spot}.to must be {END!r} or one of {names}, not {transition.to!r}"
                )
            for m, token in enumerate(transition.forced):
                _check_token(f"{spot}.forced[{m}]", token, layout.vocabulary_size)
        _validate_end(f"{where}.end_rule", layout, phase)


def _validate_end(where: str, layout: StreamLayout, phase: Phase) -> None:
    rule = phase.end_rule
    if rule == AudioEnd():
        return
    if not phase.transitions:
        raise LayoutError(f"{where} is only for phases that have transitions")
    if phase.kind is PhaseKind.TEXT and rule != AudioEnd(first_step=rule.first_step):
        raise LayoutError(f"{where} of a text phase must hold first_step only")
    if rule.first_step < 0:
        raise LayoutError(f"{where}.first_step must be at least 0, not {rule.first_step}")
    if rule.extra_steps not in (0, 1):
        raise LayoutError(f"{where}.extra_steps must be 0 or 1, not {rule.extra_steps}")
    for i, token in enumerate(rule.closing):
        _check_token(f"{where}.closing[{i}]", token, layout.vocabulary_size)
    if rule.any_stream:
        _validate_any_stream(where, layout, phase)
    if not rule.after_tail:
        return
    if rule.extra_steps or rule.closing or not rule.forbids_earlier:
        raise LayoutError(
            f"{where} must not have extra_steps, closing and forbids_earlier if it is after the "
            "tail: the segment ends at once"
        )
    ends = {transition.token for transition in phase.transitions}
    for k, (delay, sampled) in enumerate(zip(layout.delays, layout.tail.sampled, strict=True)):
        if delay < layout.max_delay and not sampled:
            raise LayoutError(
                f"fills.tail.sampled[{k}] must be true, since stream {k} emits its tail itself in "
                f"phase {phase.name!r}"
            )
    for place in ("lead_in", "tail", "end"):
        token = getattr(layout, place).token_ids[0]
        if token in ends:
            raise LayoutError(
                f"fills.{place}.token_ids[0] must not be a token that ends phase {phase.name!r}, "
                f"not {token}"
            )


def _validate_any_stream(where: str, layout: StreamLayout, phase: Phase) -> None:
    """The end is read from the tail's ids, which must mean nothing else."""
    rule = phase.end_rule
    if rule != AudioEnd(any_stream=True, extra_steps=1):
        raise LayoutError(f"{where} must have no other fields if any stream ends the segment")
    ends = [transition.token for transition in phase.transitions]
    if ends != [layout.tail.token_ids[0]]:
        raise LayoutError(
            f"fills.tail.token_ids[0] must be the only token that ends phase {phase.name!r}, "
            f"{ends}, not {layout.tail.token_ids[0]}"
        )
    if layout.end.token_ids != layout.tail.token_ids:
        raise LayoutError(
            f"fills.end.token_ids must be those of fills.tail, which any stream of phase "
            f"{phase.name!r} ends with, not {list(layout.end.token_ids)}"
        )
    for k, token in enumerate(layout.tail.token_ids):
        if layout.tail.sampled[k] or layout.end.sampled[k]:
            raise LayoutError(
                f"fills.tail.sampled[{k}] must be false, since the tail of phase {phase.name!r} "
                "is forced"
            )
        others = {
            f"fills.lead_in.token_ids[{k}]": layout.lead_in.token_ids[k],
            f"pad_token_ids[{k}]": layout.pad_token_ids[k],
        }
        for name, other in others.items():
            if token == other:
                raise LayoutError(f"{name} must not be what ends phase {phase.name!r}, {token}")


def _check_token(name: str, token: int, vocabulary_size: int) -> None:
    if not 0 <= token < vocabulary_size:
        raise LayoutError(f"{name} must be in [0, {vocabulary_size}), not {token}")


def _check_range(name: str, pair: tuple[int, int], vocabulary_size: int) -> None:
    if not 0 <= pair[0] < pair[1] <= vocabulary_size:
        raise LayoutError(
            f"{name} must be [begin, end) with 0 <= begin < end <= {vocabulary_size}, "
            f"not {list(pair)}"
        )


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise LayoutError(f"{name} must be an integer, not {value!r}")
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise LayoutError(f"{name} must be true or false, not {value!r}")
    return value


def _list(name: str, values: Any, items: str = "") -> Sequence[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise LayoutError(f"{name} must be a list{items}, not {values!r}")
    return values


def _integers(name: str, values: Any) -> tuple[int, ...]:
    values = _list(name, values, " of integers")
    return tuple(_integer(f"{name}[{i}]", value) for i, value in enumerate(values))


def _range(name: str, value: Any) -> tuple[int, int]:
    pair = _integers(name, value)
    if len(pair) != 2:
        raise LayoutError(f"{name} must be a pair [begin, end), not {value!r}")
    return pair[0], pair[1]


def _refuse_unknown(name: str, data: Any, known: set[str]) -> None:
    if not isinstance(data, Mapping):
        raise LayoutError(f"{name} must be an object, not {data!r}")
    unknown = sorted(set(data) - known)
    if unknown:
        raise LayoutError(f"{name} has unknown keys {unknown}; known are {sorted(known)}")


def _phase(name: str, data: Any) -> Phase:
    _refuse_unknown(name, data, {"name", "kind", "begin_tokens", "transitions", "end_rule"})
    kind = str(data.get("kind")).upper()
    if kind not in PhaseKind.__members__:
        raise LayoutError(f"{name}.kind must be 'text' or 'audio', not {data.get('kind')!r}")
    transitions = []
    for j, item in enumerate(_list(f"{name}.transitions", data.get("transitions", ()))):
        spot = f"{name}.transitions[{j}]"
        _refuse_unknown(spot, item, {"token", "to", "forced"})
        transitions.append(
            Transition(
                token=_integer(f"{spot}.token", item.get("token")),
                to=str(item.get("to")),
                forced=_integers(f"{spot}.forced", item.get("forced", ())),
            )
        )
    return Phase(
        name=str(data.get("name", "")),
        kind=PhaseKind[kind],
        begin_tokens=_integers(f"{name}.begin_tokens", data.get("begin_tokens", ())),
        transitions=tuple(transitions),
        end_rule=_end(f"{name}.end_rule", data.get("end_rule")),
    )


def _fills(name: str, data: Any, num_streams: int) -> AudioFills:
    if data is None:
        return AudioFills()
    _refuse_unknown(name, data, set(_PLACES))
    places = {}
    for place, value in data.items():
        where = f"{name}.{place}"
        _refuse_unknown(where, value, {"token_ids", "sampled"})
        if "token_ids" not in value:
            raise LayoutError(f"{where}.token_ids is missing")
        ids, sampled = value["token_ids"], value.get("sampled", False)
        ids = [ids] * num_streams if isinstance(ids, int) else ids
        sampled = [sampled] * num_streams if isinstance(sampled, bool) else sampled
        places[place] = PlaceFill(
            _integers(f"{where}.token_ids", ids),
            tuple(
                _boolean(f"{where}.sampled[{k}]", flag)
                for k, flag in enumerate(_list(f"{where}.sampled", sampled, " of booleans"))
            ),
        )
    return AudioFills(**places)


def _end(name: str, data: Any) -> AudioEnd:
    if data is None:
        return AudioEnd()
    every = {"kind", "first_step", "forbids_earlier", "extra_steps", "closing"}
    _refuse_unknown(name, data, every)
    kind = data.get("kind", _ID_ON_PRIMARY)
    kinds = (_ID_ON_PRIMARY, _AFTER_TAIL, _ANY_STREAM)
    if kind not in kinds:
        raise LayoutError(f"{name}.kind must be one of {list(kinds)}, not {kind!r}")
    if kind == _ANY_STREAM:
        _refuse_unknown(name, data, {"kind"})
        return AudioEnd(any_stream=True, extra_steps=1)
    if kind == _AFTER_TAIL:
        _refuse_unknown(name, data, {"kind", "first_step"})
    return AudioEnd(
        after_tail=kind == _AFTER_TAIL,
        first_step=_integer(f"{name}.first_step", data.get("first_step", 0)),
        forbids_earlier=_boolean(f"{name}.forbids_earlier", data.get("forbids_earlier", True)),
        extra_steps=_integer(f"{name}.extra_steps", data.get("extra_steps", 0)),
        closing=_integers(f"{name}.closing", data.get("closing", ())),
    )


def _end_to_dict(rule: AudioEnd) -> dict[str, Any]:
    if rule == AudioEnd():
        return {}
    if rule.any_stream:
        return {"end_rule": {"kind": _ANY_STREAM}}
    data: dict[str, Any] = {"kind": _AFTER_TAIL, "first_step": rule.first_step}
    if not rule.after_tail:
        data |= {
            "kind": _ID_ON_PRIMARY,
            "forbids_earlier": rule.forbids_earlier,
            "extra_steps": rule.extra_steps,
            "closing": list(rule.closing),
        }
    return {"end_rule": data}
