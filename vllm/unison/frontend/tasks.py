# SPDX-License-Identifier: Apache-2.0
"""Which of a model's tasks serves a request, by what the request gives and what it wants."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vllm.unison.frontend.errors import InvalidRequestError, reports_invalid_request
from vllm.unison.model.conversation import Turn
from vllm.unison.model.layout import END, PhaseKind, StreamLayout
from vllm.unison.model.phases import start_of_generation
from vllm.unison.model.spec import SpeechSpec, TaskPrompt

_NAMES = {PhaseKind.TEXT: "text", PhaseKind.AUDIO: "audio"}


def emits(layout: StreamLayout, task: TaskPrompt) -> frozenset[str]:
    """What a request of a task may emit: any of "text" and "audio"."""
    return _reachable(layout, _start(layout, task))


def emits_first(layout: StreamLayout, task: TaskPrompt) -> str:
    """What a request of a task emits first: "text" or "audio"."""
    return _NAMES[layout.phases[_start(layout, task)].kind]


@dataclass(frozen=True)
class FieldNames:
    """What the fields of a request are called where it comes from, for errors.

    Attributes:
        text, audio: the inputs.
        output: what says which output is wanted; empty where nothing does.
        voice: what names a voice, or is the recording of one.
        reference_text: the transcript of that recording.
    """

    text: str = "prompt"
    audio: str = "audio"
    output: str = ""
    voice: str = "voice"
    reference_text: str = "reference_text"

    def rename(self, error: InvalidRequestError) -> InvalidRequestError:
        """An error of the engine's, whose own names are the defaults, in the request's words."""
        return error.renamed(
            {
                "prompt": self.text,
                "prompt_token_ids": self.text,
                "audio": self.audio,
                "voice": self.voice,
                "reference_text": self.reference_text,
            }
        )


ENGINE_NAMES = FieldNames()


def choose_task(
    spec: SpeechSpec,
    inputs: Collection[str],
    modalities: Collection[str] | None,
    *,
    name: str | None = None,
    voice: bool = False,
    recording: bool = False,
    reference_text: bool = False,
    fields: FieldNames = ENGINE_NAMES,
) -> TaskPrompt:
    """The task for a request.

    Args:
        spec: the model's specification, with tasks.
        inputs: what the request holds, any of "text" and "audio".
        modalities: of the output, any of "text" and "audio"; None: whatever is made.
        name: the task that it names, if it names one.
        voice: whether it names a voice, or gives the recording of one.
        recording: whether it gives a recording.
        reference_text: whether it gives the transcript of that recording.
        fields: the names of its fields.

    Returns:
        The named task, if it fits. Else, of the tasks that need no more than is given, take all of
        it and emit at least what is wanted, the first that emits nothing else; without one, the
        first. A task that takes a voice comes before one that does not if there is a voice, and one
        that speaks with a recording's voice alone needs one. Text that a request did not ask for is
        not lost on its way to audio, so it may come along; audio must be wanted.

    Raises:
        InvalidRequestError: if there is none, or the named one does not fit.
    """
    if name is not None:
        task = _named_task(spec, name, inputs, modalities)
    else:
        fitting = [
            (
                not voice and needs_voice(spec, task),
                voice and not _takes_voice(spec, task, recording),
                _surplus(spec, task, modalities),
                index,
            )
            for index, task in enumerate(spec.tasks)
            if task.is_chosen and _takes(task, inputs) and _makes(spec, task, modalities)
        ]
        if not fitting:
            raise InvalidRequestError(_no_task(spec, inputs, modalities, fields))
        task = spec.tasks[min(fitting)[-1]]
    if not voice and needs_voice(spec, task):
        raise InvalidRequestError(
            f"{fields.voice} must be given: task {task.name!r} speaks with the voice of a recording"
        )
    if voice and not _takes_voice(spec, task, recording):
        what = "the recording of a voice" if recording else "one"
        raise InvalidRequestError(
            f"{fields.voice} must not be given: task {task.name!r} has no place for {what}"
        )
    if reference_text and not task.takes_reference_text:
        raise InvalidRequestError(
            f"{fields.reference_text} must not be given: task {task.name!r} has no place for one"
        )
    return task


def needs_voice(spec: SpeechSpec, task: TaskPrompt) -> bool:
    """Whether a task speaks with the voice of a recording and no other."""
    return "voice" in task.parts and not spec.voices


def takes_recording(spec: SpeechSpec, task: TaskPrompt) -> bool:
    """Whether a recording may stand for a task's voice.

    In a model with voices of its own the place is for their ids, unless what is said in a recording
    has a place beside it.
    """
    is_for_recordings = not spec.voices or task.takes_reference_text
    return task.takes_voice and spec.has_codec and is_for_recordings


def _takes_voice(spec: SpeechSpec, task: TaskPrompt, is_recording: bool) -> bool:
    return takes_recording(spec, task) if is_recording else task.takes_voice


def _takes(task: TaskPrompt, inputs: Collection[str]) -> bool:
    return task.needs <= set(inputs) <= task.takes


@reports_invalid_request
def choose_dialogue(
    spec: SpeechSpec,
    turns: Sequence[Turn],
    modalities: Collection[str] | None,
    name: str | None = None,
    fields: FieldNames = ENGINE_NAMES,
) -> TaskPrompt:
    """The task for a conversation, of a model that has any.

    Args:
        spec: the model's specification.
        turns: of the conversation.
        modalities: of the answer, any of "text" and "audio"; None: whatever is made.
        name: the task that the request names, if it names one.
        fields: the names of its fields.

    Raises:
        InvalidRequestError: if there is none, or the named one does not fit.
    """
    if name is not None and name not in spec.conversations:
        raise InvalidRequestError(f"task must be one of {list(spec.conversations)}, not {name!r}")
    known = spec.conversations_of(turns)
    if name is not None and name not in known:
        raise InvalidRequestError(
            f"task must be one of {list(known)} for what the messages hold, not {name!r}"
        )
    tasks = [task for task in spec.tasks if task.name in known]
    named = [task for task in tasks if task.name == name or (name is None and task.is_chosen)]
    fitting = [task for task in named if _makes(spec, task, modalities)]
    if not fitting:
        made = {task.name: _words(emits(spec.layout, task)) for task in named}
        raise InvalidRequestError(
            f"{fields.output or 'modalities'}: no conversation is answered with "
            f"{_words(modalities or ())}; the model has {made}"
        )
    return min(fitting, key=lambda task: _surplus(spec, task, modalities))


def _named_task(
    spec: SpeechSpec, name: str, inputs: Collection[str], modalities: Collection[str] | None
) -> TaskPrompt:
    tasks = {task.name: task for task in spec.tasks}
    if name not in tasks:
        raise InvalidRequestError(f"task must be one of {sorted(tasks)}, not {name!r}")
    task = tasks[name]
    if not _takes(task, inputs):
        raise InvalidRequestError(
            f"task {name!r} needs {_words(task.needs)}, but the request gives {_words(inputs)}"
        )
    if not _makes(spec, task, modalities):
        assert modalities is not None
        raise InvalidRequestError(
            f"task {name!r} makes {_words(emits(spec.layout, task))}, "
            f"but the request wants {_words(modalities)}"
        )
    return task


def _makes(spec: SpeechSpec, task: TaskPrompt, modalities: Collection[str] | None) -> bool:
    if modalities is None:
        return True
    made = emits(spec.layout, task)
    return made >= set(modalities) and ("audio" in modalities or "audio" not in made)


def _surplus(spec: SpeechSpec, task: TaskPrompt, modalities: Collection[str] | None) -> int:
    return 0 if modalities is None else len(emits(spec.layout, task) - set(modalities))


def _no_task(
    spec: SpeechSpec,
    inputs: Collection[str],
    modalities: Collection[str] | None,
    fields: FieldNames,
) -> str:
    """The error of a request for which the model has no task; it blames the field to change."""
    others = [task for task in spec.tasks if _takes(task, inputs)]
    field = fields.output if others and fields.output else fields.text
    if "audio" in inputs and field == fields.text:
        field = fields.audio
    what = f"from {_words(inputs)}" + ("" if modalities is None else f" to {_words(modalities)}")
    known = {
        task.name: f"{_words(task.needs)} to {_words(emits(spec.layout, task))}"
        for task in spec.tasks
    }
    return f"{field}: the model has no task {what}; it has {known}"


def _words(names: Collection[str]) -> str:
    return " and ".join(sorted(names, reverse=True)) or "nothing"


def _start(layout: StreamLayout, task: TaskPrompt) -> int:
    if task.phase is not None:
        return layout.phase_index(task.phase)
    # Texts, codes and voices hold no begin tokens, so the task's own tokens decide.
    ids = [part for part in task.all_parts if isinstance(part, int)]
    return start_of_generation(layout, ids)[0]


def _reachable(layout: StreamLayout, start: int) -> frozenset[str]:
    seen, frontier = {start}, [start]
    while frontier:
        for transition in layout.phases[frontier.pop()].transitions:
            if transition.to != END:
                index = layout.phase_index(transition.to)
                if index not in seen:
                    seen.add(index)
                    frontier.append(index)
    return frozenset(_NAMES[layout.phases[index].kind] for index in seen)
