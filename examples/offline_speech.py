# SPDX-License-Identifier: Apache-2.0
"""Text to speech without a server: two sentences, two voices, one batch.

    python examples/offline_speech.py

writes road.wav and shop.wav. Without `SamplingParams` a request gets the model's own
temperature, guidance scale and length for its task.
"""

import soundfile

from vllm import LLM
from vllm.inputs import TextPrompt

SENTENCES = {
    "road.wav": ("The road to the village was closed by the snow.", "heart"),
    "shop.wav": ("My mother has a small shop in the town.", "joe"),
}


def main() -> None:
    llm = LLM("unison-default", enforce_eager=True)  # compiling pays off with long runs only
    prompts = [
        TextPrompt(prompt=text, mm_processor_kwargs={"voice": voice})
        for text, voice in SENTENCES.values()
    ]
    for name, output in zip(SENTENCES, llm.generate(prompts), strict=True):
        audio = output.outputs[0].audio
        assert audio is not None
        soundfile.write(name, audio.samples, audio.sample_rate)
        print(f"{name}: {audio.seconds:.2f} s, {len(audio.codes)} frames")


if __name__ == "__main__":  # the engine is a process of its own, and imports this file again
    main()
