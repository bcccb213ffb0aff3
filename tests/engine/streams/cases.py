# SPDX-License-Identifier: Apache-2.0
"""Requests that the engine and the reference are given alike."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.engine.streams.reference import Generated, Prompt, Reference, Settings
from vllm import RequestOutput, SamplingParams
from vllm.unison.testing.random_checkpoint import BEGIN_TEXT, FIRST_TEXT

SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = 320
MAX_MODEL_LEN = 256
BLOCK_SIZE = 32
"""The smallest that attention on the CPU takes."""


@dataclass(frozen=True)
class Case:
    """A request.

    Attributes:
        text: for task prompts.
        clip: [num_samples] at SAMPLE_RATE, whole frames, for task prompts.
        task: name of a task prompt; chosen by what is given if None.
        token_ids: the prompt's ids of stream 0, instead of a task prompt.
        auxiliary_ids: [num_tokens, num_streams - 1] ids of the others, beside token_ids.
        options: fields of SamplingParams; temperature defaults to 0.
    """

    text: str | None = None
    clip: NDArray[np.float32] | None = None
    task: str | None = None
    token_ids: tuple[int, ...] | None = None
    auxiliary_ids: NDArray[np.int32] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def with_options(self, **options: Any) -> Case:
        """The same prompt with more options."""
        return replace(self, options=self.options | options)

    @property
    def prompt(self) -> Any:
        """The prompt as LLM.generate takes it."""
        if self.token_ids is not None:
            prompt: dict[str, Any] = {"prompt_token_ids": list(self.token_ids)}
            if self.auxiliary_ids is not None:
                prompt["mm_processor_kwargs"] = {"auxiliary_token_ids": self.auxiliary_ids}
            return prompt
        prompt = {"prompt": self.text or ""}
        if self.clip is not None:
            prompt["multi_modal_data"] = {"audio": (self.clip, SAMPLE_RATE)}
        if self.task is not None:
            prompt["mm_processor_kwargs"] = {"task": self.task}
        return prompt

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters."""
        return SamplingParams(**({"temperature": 0.0} | self.options))

    def reference_prompt(self, reference: Reference) -> Prompt:
        """The prompt as the reference lays it out."""
        if self.auxiliary_ids is not None:
            assert self.token_ids is not None
            rows = zip(self.token_ids, self.auxiliary_ids.tolist(), strict=True)
            return Prompt([[token, *row] for token, row in rows])
        if self.token_ids is not None:
            pads = reference.pads[1:]
            return reference.delayed([[token, *pads] for token in self.token_ids])
        task = self.task
        if task is None:
            given = (self.text is not None, self.clip is not None)
            task = {
                (True, False): "text_to_speech",
                (False, True): "speech_to_text",
                (True, True): "voice_prompted_speech",
            }[given]
        clip = None if self.clip is None else torch.from_numpy(self.clip)
        return reference.prompt_of_task(task, self.text, clip)

    def settings(self, num_streams: int) -> Settings:
        """The sampling settings as the reference takes them."""
        options = self.options
        text = [options.get("temperature", 0.0), options.get("top_k", 0), options.get("top_p", 1.0)]
        names = ("stream_temperature", "stream_top_k", "stream_top_p")
        columns = []
        for name, plain in zip(names, text, strict=True):
            value = options.get(name, plain)
            columns.append(value if isinstance(value, list) else [value] * num_streams)
        return Settings(
            max_tokens=options.get("max_tokens", 16),
            max_model_len=MAX_MODEL_LEN,
            min_tokens=options.get("min_tokens", 0),
            ignore_eos=options.get("ignore_eos", False),
            seed=options.get("seed"),
            text=(text[0], max(text[1], 0), text[2]),
            streams=tuple((t, max(k, 0), p) for t, k, p in zip(*columns, strict=True)),
        )

    def expected(self, reference: Reference) -> Generated:
        """What the reference generates."""
        return reference.generate(
            self.reference_prompt(reference), self.settings(reference.num_streams)
        )


def noise_clip(num_frames: int, seed: int) -> NDArray[np.float32]:
    """A clip of noise, whole frames long."""
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(num_frames * SAMPLES_PER_FRAME)).astype(np.float32)


def assert_equals(output: RequestOutput, expected: Generated, what: str = "") -> None:
    """The engine's output is what the reference generated."""
    completion = output.outputs[0]
    codes = None if completion.audio is None else completion.audio.codes.tolist()
    got = list(completion.token_ids)
    if got != expected.primary or codes != expected.codes:
        pairs = zip(got, expected.primary, strict=False)
        step = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        margin = (
            "" if step is None else f", where the reference's margin is {expected.margins[step]}"
        )
        raise AssertionError(
            f"{what}: stream 0 differs first at step {step}{margin}\nengine    {got}\n"
            f"reference {expected.primary}\nengine    {codes}\nreference {expected.codes}"
        )
    assert completion.finish_reason == expected.finish_reason, what
    if completion.audio is not None:
        assert completion.audio.codes.dtype == np.int32
        assert completion.audio.samples.dtype == np.float32
        assert completion.audio.sample_rate == SAMPLE_RATE
        assert completion.audio.samples.shape == (
            len(completion.audio.codes) * SAMPLES_PER_FRAME,
        ), what


def comparable(output: RequestOutput) -> list[Any]:
    """All that a request's output says, as plain values that compare exactly."""
    return [
        (
            list(completion.token_ids),
            completion.text,
            completion.finish_reason,
            None
            if completion.audio is None
            else (completion.audio.codes.tolist(), completion.audio.samples.tobytes()),
        )
        for completion in output.outputs
    ]


_TEXT = (BEGIN_TEXT, *range(FIRST_TEXT + 60, FIRST_TEXT + 120))
_SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 30}

CASES = [
    Case(text="hello", options={"max_tokens": 50, "ignore_eos": True}),
    Case(
        text="a longer text that fills more than one block of the cache", options={"max_tokens": 40}
    ),
    Case(text="sampled", options={"max_tokens": 45, "seed": 1, "min_tokens": 20, **_SAMPLED}),
    Case(clip=noise_clip(45, seed=1), options={"max_tokens": 40, "min_tokens": 40}),
    Case(clip=noise_clip(45, seed=1), options={"max_tokens": 30, "seed": 2, **_SAMPLED}),
    Case(text="say this", clip=noise_clip(60, seed=2), options={"max_tokens": 40}),
    Case(
        text="say this",
        clip=noise_clip(60, seed=2),
        options={"max_tokens": 50, "seed": 3, "ignore_eos": True, **_SAMPLED},
    ),
    Case(token_ids=_TEXT, options={"max_tokens": 50}),
    Case(token_ids=_TEXT[:30], options={"max_tokens": 60, "seed": 4, **_SAMPLED}),
    Case(token_ids=_TEXT[:3], options={"max_tokens": 40, "seed": 5, "temperature": 1.2}),
    Case(
        text="per stream",
        options={
            "max_tokens": 35,
            "seed": 6,
            "stream_temperature": [1.0, 0.0] + [0.5] * 7,
            "stream_top_p": 0.9,
        },
    ),
    Case(text="last", options={"max_tokens": 70, "ignore_eos": True, "seed": 7, **_SAMPLED}),
]
"""Mixed requests of the invariance tests, for a layout of nine streams."""
