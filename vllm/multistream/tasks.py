# SPDX-License-Identifier: Apache-2.0
"""Which of a model's tasks serves a request, by what the request gives and what it wants."""

from __future__ import annotations

from collections.abc import Collection

from vllm.multistream.layout import END, PhaseKind, StreamLayout
from vllm.multistream.phases import start_of_generation
from vllm.multistream.refusal import RequestRefused
from vllm.multistream.spec import SpeechSpec, TaskPrompt

_NAMES = {PhaseKind.TEXT: "text", PhaseKind.AUDIO: "audio"}


def emits(layout: StreamLayout, task: TaskPrompt) -> frozenset[str]:
    """What a request of a task may emit: any of "text" and "audio"."""
    return _reachable(layout, _start(layout, task))


def emits_first(layout: StreamLayout, task: TaskPrompt) -> str:
    """What a request of a task emits first: "text" or "audio"."""
    return _NAMES[layout.phases[_start(layout, task)].kind]


def choose_task(
    spec: SpeechSpec, given: Collection[str], wanted: Collection[str], *, voice: bool = False
) -> str:
    """Name of the task for a request.

    Args:
        spec: the model's specification.
        given: what the request gives, any of "text" and "audio".
        wanted: what it wants, any of "text" and "audio".
        voice: whether it names a voice.

    Returns:
        Of the tasks that need exactly what is given and emit at least what is wanted, the first
        that emits nothing else; without one, the first. A task that takes a voice comes before
        one that does not if a voice is named. Text that a request did not ask for is not lost on
        its way to audio, so it may come along; audio must be wanted.

    Raises:
        RequestRefused: if there is none.
    """
    fitting = []
    for task in spec.tasks:
        made = emits(spec.layout, task)
        if task.needs == set(given) and made >= set(wanted):
            if "audio" in made and "audio" not in wanted:
                continue
            fitting.append((voice and not task.takes_voice, len(made), task.name))
    if not fitting:
        known = {
            task.name: f"{_words(task.needs)} to {_words(emits(spec.layout, task))}"
            for task in spec.tasks
        }
        raise RequestRefused(
            f"task: the model has none from {_words(given)} to {_words(wanted)}; it has {known}"
        )
    return min(fitting, key=lambda item: item[:2])[2]


def _words(names: Collection[str]) -> str:
    return " and ".join(sorted(names, reverse=True)) or "nothing"


def _start(layout: StreamLayout, task: TaskPrompt) -> int:
    # Texts, codes and voices hold no begin tokens, so the task's own tokens decide.
    return start_of_generation(layout, [part for part in task.parts if isinstance(part, int)])[0]


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
