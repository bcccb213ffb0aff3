# SPDX-License-Identifier: Apache-2.0
"""A recording as the prompt: the model goes on speaking where it ends, in its voice.

    python examples/offline_speech.py
    python examples/audio_prompt.py road.wav

writes continued.wav, the recording and what follows. The model's task `speech_continuation` takes
audio alone; a model with a task of text and audio (a voice prompt) takes both, as
random_checkpoint.py shows.
"""

import sys

import numpy as np
import soundfile

from vllm import LLM, SamplingParams
from vllm.inputs import TextPrompt


def main(name: str) -> None:
    samples, rate = soundfile.read(name, dtype="float32")
    llm = LLM("unison-default", enforce_eager=True)
    prompt = TextPrompt(
        prompt="",
        multi_modal_data={"audio": (samples, rate)},
        mm_processor_kwargs={"task": "speech_continuation"},
    )
    params = SamplingParams(temperature=0.8, top_k=20, seed=1, min_tokens=25, max_tokens=75)
    audio = llm.generate(prompt, params)[0].outputs[0].audio  # at 16 kHz, as offline_speech.py's
    assert audio is not None
    soundfile.write("continued.wav", np.concatenate([samples, audio.samples]), rate)
    print(f"continued.wav: {len(samples) / rate:.2f} s and {audio.seconds:.2f} s more")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["road.wav"]))
