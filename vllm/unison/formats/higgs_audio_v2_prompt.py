# SPDX-License-Identifier: Apache-2.0
"""How conversations with Higgs Audio v2 are written, as the chat template of its checkpoint does.

A system turn says what to do, and a scene in it where and who: the voices of speakers are described
there, or recorded. Then users' texts and the assistant's recordings take turns; what the assistant
said before, in whose voice, is what it goes on with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllm.unison.model.conversation import Content, Recording, Turn

SYSTEM, SCENE, USER, ASSISTANT = ROLES = ("system", "scene", "user", "assistant")
INSTRUCTION = "Generate audio following instruction."
"""The system's turn where a conversation has none."""

_SCENE_BEGIN, _SCENE_END = "<|scene_desc_start|>", "<|scene_desc_end|>"
_AUDIO_BEGIN, _AUDIO_END = "<|audio_out_bos|>", "<|audio_eos|>"
_END_OF_TURN = "<|eot_id|>"
_SPECIAL = re.compile(r"<\|[A-Za-z0-9_]+\|>")


class HiggsAudioV2Grammar:
    """The turns of a conversation as texts with special tokens, and recordings between them."""

    def render(self, turns: Sequence[Turn]) -> list[Content]:
        """The prompt up to the token after which audio begins; see TurnGrammar."""
        _check_order(turns)
        named = [(f"messages[{index}]", turn) for index, turn in enumerate(turns)]
        if turns[0].role != SYSTEM:
            named.insert(0, ("", Turn(SYSTEM, (INSTRUCTION,))))
        scene = named.pop(1) if named[1][1].role == SCENE else None
        (system_name, system), *others = named
        content: list[Content] = [
            "<|begin_of_text|>",
            _header(SYSTEM),
            _text(system_name, system, (_SCENE_BEGIN, _SCENE_END)),
        ]
        if scene is not None:
            content += ["\n\n", _SCENE_BEGIN, "\n", *_scene(*scene), "\n", _SCENE_END]
        content.append(_END_OF_TURN)
        for name, turn in others:
            content.append(_header(turn.role))
            if turn.role == ASSISTANT:
                content += [_AUDIO_BEGIN, _recording(name, turn), _AUDIO_END]
            else:
                content.append(_text(name, turn))
            content.append(_END_OF_TURN)
        content += [_header(ASSISTANT), _AUDIO_BEGIN]
        return _joined(content)

    def speak(
        self, text: str, recording: Recording | None = None, transcript: str = ""
    ) -> list[Turn]:
        """A text, after a turn in which the voice of the recording said its transcript."""
        turns = [Turn(SYSTEM, (INSTRUCTION,))]
        if recording is not None:
            turns += [Turn(USER, (transcript,)), Turn(ASSISTANT, (recording,))]
        return [*turns, Turn(USER, (text,))]


def _check_order(turns: Sequence[Turn]) -> None:
    if not turns:
        raise ValueError("messages must have at least one turn")
    for index, turn in enumerate(turns):
        where = f"messages[{index}].role"
        if turn.role not in ROLES:
            raise ValueError(f"{where} must be one of {list(ROLES)}, not {turn.role!r}")
        if turn.role == SYSTEM and index:
            raise ValueError(f"{where} must not be {SYSTEM!r}: that turn comes first")
        if turn.role == SCENE and index and turns[index - 1].role != SYSTEM:
            raise ValueError(f"{where} must not be {SCENE!r}: it comes first, or after the system")
    if turns[-1].role != USER:
        raise ValueError(
            f"messages[{len(turns) - 1}].role must be {USER!r}, whose text is spoken, "
            f"not {turns[-1].role!r}"
        )


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _text(name: str, turn: Turn, allowed: tuple[str, ...] = ()) -> str:
    """The text of a turn that has nothing else."""
    for part in turn.content:
        if isinstance(part, Recording):
            raise ValueError(f"{name}.content must be text: the model hears its own voice alone")
        _check_special(name, part, allowed)
    text = "".join(part.strip() for part in turn.content if isinstance(part, str))
    if not text:
        raise ValueError(f"{name}.content must hold text")
    return text


def _recording(name: str, turn: Turn) -> Recording:
    if len(turn.content) != 1 or not isinstance(turn.content[0], Recording):
        raise ValueError(f"{name}.content must be one recording, of what the assistant said")
    return turn.content[0]


def _scene(name: str, turn: Turn) -> list[Content]:
    """A description, then a line for each speaker, whose voice may be a recording."""
    content: list[Content] = []
    last = len(turn.content) - 1
    for index, part in enumerate(turn.content):
        if isinstance(part, Recording):
            content += [" ", _AUDIO_BEGIN, part, _AUDIO_END]
            content += ["\n"] if index < last else []
            continue
        _check_special(name, part, ())
        content.append(part.strip())
        if index < last and index == 0:
            content.append("\n\n")
        elif index < last and isinstance(turn.content[index + 1], str):
            content.append("\n")
    return content


def _check_special(name: str, text: str, allowed: tuple[str, ...]) -> None:
    """Refuse what the tokenizer would not read as text."""
    for found in _SPECIAL.findall(text):
        if found not in allowed:
            raise ValueError(f"{name}.content must not hold the special token {found!r}")


def _joined(content: Sequence[Content]) -> list[Content]:
    """The same with one text between recordings, since tokens may span the parts of a text."""
    joined: list[Content] = []
    for part in content:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined
