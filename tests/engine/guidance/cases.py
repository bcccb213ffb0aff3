# SPDX-License-Identifier: Apache-2.0
"""Guided requests that the engine and the reference are given alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.streams.cases import Case
from tests.engine.streams.reference import Generated, Guidance, Reference
from vllm.unison.testing.random_checkpoint import BEGIN_AUDIO, BEGIN_TEXT, FIRST_TEXT

Steps = list[list[int]]


@dataclass(frozen=True)
class Model:
    """A checkpoint with its reference.

    Attributes:
        folder: the checkpoint.
        reference: which reads its files.
        null_prompt: of its configuration: ids of stream 0, or "pads".
        audio_only: whether only audio is guided.
    """

    folder: Path
    reference: Reference
    null_prompt: list[int] | str
    audio_only: bool

    @classmethod
    def of(cls, folder: Path) -> Model:
        """The model of a folder."""
        config = json.loads((folder / "config.json").read_text())["guidance"]
        return cls(folder, Reference(folder), config["null_prompt"], config["audio_only"])

    def expected(self, case: Case) -> Generated:
        """What the reference generates."""
        reference = self.reference
        return reference.generate(
            case.reference_prompt(reference),
            case.settings(reference.num_streams),
            self.guidance(case.options),
        )

    def guidance(self, options: dict[str, Any]) -> Guidance | None:
        """The guidance that sampling parameters ask for; None without."""
        first, last = options.get("guidance_interval") or (0, None)
        lanes = options.get("guidance_lanes")
        if lanes is not None:
            return Guidance(
                lanes[0]["weight"],
                tuple((lane["weight"], self._lane_prompt(lane)) for lane in lanes[1:]),
                first,
                last,
                self.audio_only,
            )
        scale = options.get("guidance_scale", 1.0)
        if scale == 1.0:
            return None
        lane = {
            "prompt": options.get("negative_prompt"),
            "prompt_token_ids": options.get("negative_prompt_token_ids"),
        }
        prompt = self._lane_prompt(lane)
        return Guidance(scale, ((1 - scale, prompt),), first, last, self.audio_only)

    def _lane_prompt(self, lane: dict[str, Any]) -> Steps | None:
        """Ids of all streams per step of a lane's prompt; None for pads."""
        if lane.get("prompt") is not None:
            return self.reference.prompt_of_task("text_to_speech", lane["prompt"]).steps
        ids = lane.get("prompt_token_ids")
        if ids is None:
            if isinstance(self.null_prompt, str):
                return None
            ids = self.null_prompt
        return [[token, *self.reference.pads[1:]] for token in ids]


def text_ids(letters: str) -> list[int]:
    """Ids of text, any."""
    return [FIRST_TEXT + ord(letter) % 256 for letter in letters]


def speech_prompt(length: int, seed: int = 0) -> list[int]:
    """A prompt of `length` tokens that text fills and audio follows."""
    text = [FIRST_TEXT + (7 * i + 13 * seed) % 256 for i in range(length - 2)]
    return [BEGIN_TEXT, *text, BEGIN_AUDIO]


SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_k": 30}


def _lanes(*weights_and_prompts: tuple[float, Any]) -> list[dict[str, Any]]:
    lanes = []
    for weight, prompt in weights_and_prompts:
        lane: dict[str, Any] = {"weight": weight}
        if isinstance(prompt, str):
            lane["prompt"] = prompt
        elif prompt is not None:
            lane["prompt_token_ids"] = prompt
        lanes.append(lane)
    return lanes


THREE_LANES = _lanes((3.0, None), (-1.5, "less of this"), (-0.5, None))
"""Double guidance: away from a prompt and from the null prompt."""
FOUR_LANES = _lanes((1.5, None), (0.5, "more"), (-0.75, speech_prompt(50)), (-0.25, None))

PLAIN: dict[str, Any] = {"max_tokens": 26, "ignore_eos": True}

GUIDANCE: list[dict[str, Any]] = [
    {"guidance_scale": 0.0},
    {"guidance_scale": 0.5},
    {"guidance_scale": 1.0},
    {"guidance_scale": 1.5},
    {"guidance_scale": 3.0},
    {"guidance_scale": 7},
    {"guidance_scale": 3.0, "negative_prompt": "n"},
    {"guidance_scale": 3.0, "negative_prompt": "a negative prompt that is much longer than it"},
    {"guidance_scale": 1.5, "negative_prompt_token_ids": [BEGIN_AUDIO]},
    {"guidance_scale": 7.0, "negative_prompt_token_ids": speech_prompt(90, seed=3)},
    {"guidance_scale": 3.0, "guidance_interval": (0, 5)},
    {"guidance_scale": 7.0, "guidance_interval": (0, 0)},
    {"guidance_scale": 3.0, "guidance_interval": (4, 200)},
    {"guidance_scale": 3.0, "guidance_interval": (3, 12)},
    {"guidance_scale": 3.0, "guidance_interval": (200, 300)},
    {
        "guidance_scale": 2.0,
        "guidance_interval": (2, 9),
        "negative_prompt": "so long a prompt " * 4,
    },
    {"guidance_lanes": THREE_LANES},
    {"guidance_lanes": FOUR_LANES, "guidance_interval": (1, 20)},
    {"guidance_lanes": _lanes((3.0, None), (-2.0, None))},
    {},
]
"""Guidance of every kind, as fields of SamplingParams."""

MIXED = [
    Case(text="hello", options={"max_tokens": 50, "ignore_eos": True, "guidance_scale": 3.0}),
    Case(text="plain", options={"max_tokens": 50, "ignore_eos": True}),
    Case(token_ids=tuple(speech_prompt(70)), options={"max_tokens": 45, "guidance_scale": 1.5}),
    Case(
        text="seeded",
        options={"max_tokens": 45, "min_tokens": 30, "guidance_scale": 2.0, "seed": 1, **SAMPLED},
    ),
    Case(
        text="a longer negative prompt",
        options={
            "max_tokens": 60,
            "ignore_eos": True,
            "guidance_scale": 3.0,
            "negative_prompt_token_ids": speech_prompt(110, seed=1),
        },
    ),
    Case(
        text="away from two",
        options={"max_tokens": 40, "ignore_eos": True, "guidance_lanes": THREE_LANES},
    ),
    Case(token_ids=(BEGIN_TEXT, *text_ids("text")), options={"max_tokens": 40}),
    Case(
        token_ids=(BEGIN_TEXT, *text_ids("guided text")),
        options={"max_tokens": 50, "seed": 2, "guidance_scale": 2.0, **SAMPLED},
    ),
    Case(
        text="within an interval",
        options={
            "max_tokens": 55,
            "ignore_eos": True,
            "guidance_scale": 3.0,
            "guidance_interval": (2, 30),
        },
    ),
    Case(
        text="last",
        options={
            "max_tokens": 40,
            "ignore_eos": True,
            "seed": 3,
            "guidance_scale": 1.5,
            "negative_prompt_token_ids": speech_prompt(150, seed=2),
            **SAMPLED,
        },
    ),
]
"""Mixed requests of the invariance tests, for text that leads to audio and for any null prompt."""
