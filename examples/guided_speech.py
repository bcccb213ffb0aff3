# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance: one sentence without it, with it, and led away from another.

    python examples/guided_speech.py

A guided request decodes a second sequence, with the model's null prompt or `negative_prompt`, and
moves away from what that one would say. docs/guidance.md has all fields.
"""

from typing import Any

import soundfile

from vllm import LLM, SamplingParams

GUIDANCE: dict[str, dict[str, Any]] = {
    "plain.wav": {},
    "guided.wav": {"guidance_scale": 1.5},
    "negative.wav": {"guidance_scale": 1.5, "negative_prompt": "The bus to York is late."},
}


def main() -> None:
    llm = LLM("unison-default", enforce_eager=True)
    common: dict[str, Any] = {"temperature": 0.6, "top_k": 20, "seed": 1, "max_tokens": 500}
    params = [SamplingParams(**common, **guidance) for guidance in GUIDANCE.values()]
    outputs = llm.generate(
        ["The road to the village was closed by the snow."] * len(params), params
    )
    for name, output in zip(GUIDANCE, outputs, strict=True):
        audio = output.outputs[0].audio
        assert audio is not None
        soundfile.write(name, audio.samples, audio.sample_rate)
        print(f"{name}: {audio.seconds:.2f} s")


if __name__ == "__main__":
    main()
