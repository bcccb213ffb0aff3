# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of any shape with random weights, to try out sizes and prompts without training.

    python examples/random_checkpoint.py

The sound is noise; steps, streams, delays and prompts are those of a trained model of this shape.
This one has a task of text and audio, so a clip is a voice prompt: "speak like this".
"""

import numpy as np

from vllm import LLM, SamplingParams
from vllm.inputs import TextPrompt
from vllm.unison.testing.random_checkpoint import stream_layout, write_random_speech_lm


def main() -> None:
    layout = stream_layout(8, codebook_size=1024)  # delays 0 to 7
    model = write_random_speech_lm("random-model", "qwen3", layout=layout, hidden_size=128)
    llm = LLM(str(model), enforce_eager=True)
    seconds = np.arange(8000) / 16000
    voice = (np.sin(2 * np.pi * 220 * seconds).astype(np.float32) / 3, 16000)
    params = SamplingParams(seed=1, max_tokens=20, ignore_eos=True)  # noise knows no end
    plain = TextPrompt(prompt="hello there")
    voiced = TextPrompt(prompt="hello there", multi_modal_data={"audio": voice})
    for output in llm.generate([plain, voiced], params):
        completion = output.outputs[0]
        assert completion.audio is not None
        frames, codebooks = completion.audio.codes.shape
        print(f"{frames} frames of {codebooks} codes in {len(completion.token_ids)} steps")


if __name__ == "__main__":
    main()
