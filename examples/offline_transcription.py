# SPDX-License-Identifier: Apache-2.0
"""Speech to text without a server: audio files, in one batch.

    python examples/offline_speech.py
    python examples/offline_transcription.py road.wav shop.wav

Any sample rate and number of channels will do: audio is mixed to mono and resampled. Clips
longer than the model's context are cut by `vllm transcribe` and by the server, not here.
"""

import sys

import soundfile

from vllm import LLM
from vllm.inputs import TextPrompt


def main(names: list[str]) -> None:
    clips = [soundfile.read(name, dtype="float32") for name in names]  # (samples, sample rate)
    llm = LLM("unison-default", enforce_eager=True)
    prompts = [TextPrompt(prompt="", multi_modal_data={"audio": clip}) for clip in clips]
    for name, output in zip(names, llm.generate(prompts), strict=True):
        print(f"{name}: {output.outputs[0].text}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["road.wav"])
