# SPDX-License-Identifier: Apache-2.0
"""Requests that the engine and the reference are given alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.engine.musicgen.reference import Lane, MusicReference, Sampling
from tests.support.musicgen import SAMPLE_RATE, WORDS
from vllm import LLM, RequestOutput, SamplingParams

SAMPLES_PER_FRAME = 160
SHORT, LONG = "beat", " ".join(WORDS[i % len(WORDS)] for i in range(57))
THREE_LANES = [{"weight": 2.5}, {"weight": -0.5, "prompt": "noise"}, {"weight": -1.0}]
GREEDY: dict[str, Any] = {"temperature": 0.0}
DRAWN: dict[str, Any] = {"temperature": 0.9, "top_k": 20}


@dataclass(frozen=True)
class MusicCase:
    """A request.

    Attributes:
        text: its description.
        num_frames: that it asks for.
        options: fields of SamplingParams.
        clip: [num_samples] or [num_samples, 2] that it goes on from.
    """

    text: str
    num_frames: int
    options: dict[str, Any] = field(default_factory=lambda: GREEDY)
    clip: NDArray[np.float32] | None = None

    @property
    def prompt(self) -> Any:
        """As LLM.generate takes it."""
        prompt: dict[str, Any] = {"prompt": self.text}
        if self.clip is not None:
            prompt["multi_modal_data"] = {"audio": (self.clip, SAMPLE_RATE)}
        return prompt

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters."""
        return SamplingParams(max_tokens=self.num_frames, **self.options)

    @property
    def lanes(self) -> list[Lane]:
        """Of all lanes, the conditional one first."""
        if lanes := self.options.get("guidance_lanes"):
            return [
                (lane["weight"], lane.get("prompt") if index else self.text)
                for index, lane in enumerate(lanes)
            ]
        scale = self.options.get("guidance_scale", 1.0)
        if scale == 1.0:
            return [(1.0, self.text)]
        return [(scale, self.text), (1 - scale, self.options.get("negative_prompt"))]

    def expected(self, reference: MusicReference) -> NDArray[np.int64]:
        """[num_frames, num_streams] codes, by the reference's loop."""
        sampling = None
        if self.options.get("temperature"):
            names = ("temperature", "top_k", "top_p")
            given = {name: self.options[name] for name in names if name in self.options}
            sampling = Sampling(self.options["seed"], **given)
        prompt = None if self.clip is None else reference.codes_of(self.clip)
        return reference.loop(self.lanes, self.num_frames, sampling, prompt)


def noise(num_frames: int, seed: int, channels: int = 1) -> NDArray[np.float32]:
    """A clip, whole frames long."""
    shape = (num_frames * SAMPLES_PER_FRAME, channels)
    clip = (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)
    return clip[:, 0] if channels == 1 else clip


def codes_of(output: RequestOutput) -> NDArray[np.int32]:
    """The codes of a request's audio."""
    audio = output.outputs[0].audio
    assert audio is not None and output.outputs[0].finish_reason == "length"
    codes: NDArray[np.int32] = audio.codes
    return codes


def generate(llm: LLM, cases: list[MusicCase]) -> list[Any]:
    """The cases' outputs, from one batch."""
    return llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)


def check_generate(
    llm: LLM, reference: MusicReference, texts: list[str], frames: int, clips: list[Any]
) -> None:
    """Guided and unguided, against `generate` itself, samples included."""
    cases = [
        MusicCase(text, frames, GREEDY | {"guidance_scale": scale}, clip)
        for text, clip in zip(texts, clips, strict=True)
        for scale in (3.0, 1.0)
    ]
    for case, output in zip(cases, generate(llm, cases), strict=True):
        scale = case.options["guidance_scale"]
        codes, samples = reference.generate(case.text, frames, scale, case.clip)
        given = len(codes) - frames
        assert given == (0 if case.clip is None else len(case.clip) // SAMPLES_PER_FRAME)
        assert np.array_equal(codes_of(output), codes[given:]), case
        audio = output.outputs[0].audio
        expected = samples[given * SAMPLES_PER_FRAME :]
        assert audio.samples.shape == expected.shape
        # The engine's decoder starts where the new audio does.
        if case.clip is None:
            np.testing.assert_allclose(audio.samples, expected, atol=1e-5)


def _mixed() -> list[MusicCase]:
    """Requests of all kinds, with texts of 1 to 60 tokens."""
    texts = (SHORT, LONG, "lo fi beat", "warm piano, slow", "noise", "jazz drums")
    cases = []
    for index in range(12):
        text, frames = texts[index % len(texts)], (3, 17, 40, 60)[index % 4]
        kinds: tuple[dict[str, Any], ...] = (
            {"guidance_scale": 3.0},
            {},
            {"guidance_scale": 2.0, "negative_prompt": LONG},
            {"guidance_lanes": THREE_LANES},
        )
        options = kinds[index % 4] | (GREEDY if index % 3 else DRAWN | {"seed": index})
        cases.append(MusicCase(text, frames, options))
    guided = {"guidance_scale": 3.0}
    # The same decoder prompt of more than a block, with other texts.
    for text in (LONG, "rock", "slow"):
        cases.append(MusicCase(text, 60, GREEDY | guided, noise(50, seed=1)))
    return cases


MIXED = _mixed()
