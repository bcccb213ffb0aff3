# SPDX-License-Identifier: Apache-2.0
"""Requests that the engine and the reference are given alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.engine.higgs3.reference import Higgs3Reference, Sampling, Speech
from tests.support.higgs3 import CODEBOOK_IDS, SAMPLE_RATE, SAMPLES_PER_FRAME, TEXT_VOCABULARY
from vllm import LLM, RequestOutput, SamplingParams

GREEDY: dict[str, Any] = {"temperature": 0.0}
DRAWN: dict[str, Any] = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
SHORT, LONG = "hello", "a <|emotion:joy|> longer text, of more than one block of the cache"


def noise(num_samples: int, seed: int) -> NDArray[np.float32]:
    """A recording."""
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(num_samples)).astype(np.float32)


VOICE, OTHER_VOICE = noise(30 * SAMPLES_PER_FRAME, 1), noise(28 * SAMPLES_PER_FRAME + 77, 2)
SHORT_VOICE = noise(5000, 3)
"""Of less than a second, and no whole number of frames."""


@dataclass(frozen=True)
class HiggsCase:
    """A request.

    Attributes:
        text: to say.
        max_frames: at which it is cut off.
        options: fields of SamplingParams.
        voice: a recording to speak like.
        said: what is said in it.
    """

    text: str = SHORT
    max_frames: int = 40
    options: dict[str, Any] = field(default_factory=lambda: GREEDY)
    voice: NDArray[np.float32] | None = None
    said: str | None = None

    @property
    def prompt(self) -> Any:
        """As LLM.generate takes it."""
        prompt: dict[str, Any] = {"prompt": self.text}
        if self.voice is not None:
            prompt["multi_modal_data"] = {"voice": (self.voice, SAMPLE_RATE)}
        if self.said is not None:
            prompt["mm_processor_kwargs"] = {"reference_text": self.said}
        return prompt

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters."""
        return SamplingParams(max_tokens=self.max_frames, **self.options)

    def expected(self, reference: Higgs3Reference) -> Speech:
        """What the reference generates."""
        prompt = reference.prompt(self.text, self.voice, self.said)
        return reference.speak(prompt, self.max_frames, Sampling(**_sampling(self.options)))


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    return {} if "seed" not in options else options


def drawn(seed: int) -> dict[str, Any]:
    """Options of a sampled request."""
    return DRAWN | {"seed": seed}


def mixed() -> list[HiggsCase]:
    """Plain requests and such with recordings, greedy and sampled, cut off at many places."""
    cases = [HiggsCase(SHORT, 40, drawn(seed)) for seed in range(12)]
    cases += [HiggsCase(LONG, 1 + seed % 12, drawn(seed)) for seed in range(12)]
    voices = [(VOICE, None), (VOICE, "ab"), (OTHER_VOICE, "ab"), (SHORT_VOICE, None)]
    cases += [
        HiggsCase(text, 20, drawn(seed) if seed else GREEDY, voice, said)
        for seed, (voice, said) in enumerate(voices)
        for text in (SHORT, "other words")
    ]
    cases += [HiggsCase("no end", 30, GREEDY), HiggsCase(LONG, 45, GREEDY)]
    return cases


MIXED = mixed()


def generate(llm: LLM, cases: list[HiggsCase]) -> list[RequestOutput]:
    """The cases' outputs, from one batch."""
    return llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)


def assert_equals(output: RequestOutput, expected: Speech, what: object) -> None:
    """Codes, length and reason of an end."""
    completion: Any = output.outputs[0]
    assert np.array_equal(completion.audio.codes, expected.codes), what
    assert completion.finish_reason == ("stop" if expected.ended else "length"), what
    assert len(completion.token_ids) == len(expected.rows), what


def rows_of(steps: list[list[int]]) -> NDArray[np.int64]:
    """[num_rows, 8] ids of the codebooks, from those of the engine."""
    offsets = TEXT_VOCABULARY + CODEBOOK_IDS * np.arange(8)
    return np.array(steps) - offsets
