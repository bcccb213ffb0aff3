# SPDX-License-Identifier: Apache-2.0
"""Requests of all kinds, beside what the reference makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.engine.higgs_audio_v2.reference import (
    AUDIO,
    SYSTEM,
    Codes,
    HiggsReference,
    Sampling,
    turn,
    written,
)
from vllm import SamplingParams
from vllm.unison.codecs.base import Codec

RATE = 24000


def clip(seconds: float, seed: int) -> NDArray[np.float32]:
    """Noise, whole frames long."""
    samples = np.random.default_rng(seed).standard_normal(int(seconds * 25) * 960)
    return (0.1 * samples).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A request.

    Attributes:
        text: what is said.
        voice: seed of a recording that it is said like.
        scene: of a conversation, which then has an earlier turn in that voice as well.
        sampling: None is greedy.
        max_tokens: steps of stream 0.
    """

    text: str
    voice: int | None = None
    scene: str | None = None
    sampling: Sampling | None = None
    max_tokens: int = 40

    @property
    def prompt(self) -> Any:
        """For LLM.generate."""
        if self.scene is not None:
            return {"prompt": "", "mm_processor_kwargs": {"messages": self.messages}}
        if self.voice is None:
            return {"prompt": self.text}
        return {
            "prompt": self.text,
            "multi_modal_data": {"voice": (clip(1.2, self.voice), RATE)},
            "mm_processor_kwargs": {"reference_text": "the reference"},
        }

    @property
    def messages(self) -> Any:
        """The conversation, in OpenAI's shape."""
        assert self.scene is not None and self.voice is not None
        recorded = {"type": "audio", "audio": (clip(1.0, self.voice), RATE)}
        return [
            {"role": "system", "content": SYSTEM},
            {"role": "scene", "content": [
                {"type": "text", "text": self.scene},
                {"type": "text", "text": "SPEAKER0:"}, recorded,
                {"type": "text", "text": "SPEAKER1: a deep voice"},
            ]},
            {"role": "user", "content": "[SPEAKER0] Hello."},
            {"role": "assistant", "content": [
                {"type": "audio", "audio": (clip(1.4, self.voice + 100), RATE)}
            ]},
            {"role": "user", "content": self.text},
        ]  # fmt: skip

    @property
    def params(self) -> SamplingParams:
        """Its sampling parameters."""
        own = self.sampling or Sampling(temperature=0.0)
        return SamplingParams(
            temperature=own.temperature,
            top_k=own.top_k,
            top_p=own.top_p,
            seed=own.seed,
            max_tokens=self.max_tokens,
            ras_win_len=own.window,
            ras_win_max_num_repeat=own.max_repeats,
        )

    def steps(self, reference: HiggsReference, codec: Codec) -> Codes:
        """[num_steps, 8] what the reference makes: `generate` where that ends by itself."""
        inputs = reference.prompt(*self._written(codec))
        if self.sampling is None:
            steps = reference.generate(inputs, 1 + self.max_tokens)
            if (steps[-1] == reference.end).all():
                return steps
        return reference.loop(inputs, self.sampling or Sampling(temperature=0), self.max_tokens)

    def expected(self, reference: HiggsReference, codec: Codec) -> Codes:
        """[num_frames, 8] codes."""
        return reference.frames(self.steps(reference, codec))

    def _written(self, codec: Codec) -> tuple[str, list[Codes]]:
        import torch

        def encoded(seconds: float, seed: int) -> Codes:
            return codec.encode(torch.from_numpy(clip(seconds, seed))).numpy().astype(np.int64)

        system = turn("system", SYSTEM)
        if self.scene is not None:
            assert self.voice is not None
            described = (
                f"{SYSTEM}\n\n<|scene_desc_start|>\n{self.scene}\n\nSPEAKER0: {AUDIO}\n"
                "SPEAKER1: a deep voice\n<|scene_desc_end|>"
            )
            turns = [turn("system", described), turn("user", "[SPEAKER0] Hello.")]
            turns += [turn("assistant", AUDIO), turn("user", self.text)]
            return written(*turns), [encoded(1.0, self.voice), encoded(1.4, self.voice + 100)]
        if self.voice is None:
            return written(system, turn("user", self.text)), []
        turns = [turn("user", "the reference"), turn("assistant", AUDIO), turn("user", self.text)]
        return written(system, *turns), [encoded(1.2, self.voice)]


RAS = Sampling(seed=5, temperature=0.4, top_k=6, top_p=0.9, window=7)
MIXED = [
    Case("The sun rises in the east."),
    Case("A"),
    Case("Hello there, how are you?", sampling=RAS),
    Case("What is this?", voice=1),
    Case("And what is that?", voice=1, sampling=Sampling(7, 0.8, 0, 0.95)),
    Case("[SPEAKER1] Hello, hello.", voice=2, scene="A quiet room."),
    Case("[SPEAKER0] Hello!", voice=2, scene="A quiet room.", sampling=RAS),
    Case("cut off", max_tokens=3),
    Case("cut off", sampling=Sampling(3, 1.0), max_tokens=6),
]
