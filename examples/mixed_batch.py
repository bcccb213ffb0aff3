# SPDX-License-Identifier: Apache-2.0
"""Speech and transcription in one batch, each request with its own parameters.

    python examples/mixed_batch.py

says a sentence, then hears it while it says the next one. Requests of all kinds share the
engine's steps; none waits for a batch of its own kind.
"""

from vllm import LLM, SamplingParams
from vllm.inputs import TextPrompt


def main() -> None:
    llm = LLM("unison-default", enforce_eager=True)
    first = llm.generate("He was standing near the door.")[0].outputs[0].audio
    assert first is not None
    heard, said, again = llm.generate(
        [
            TextPrompt(prompt="", multi_modal_data={"audio": first}),
            TextPrompt(
                prompt="The horse was tired after the long day.",
                mm_processor_kwargs={"voice": "joe"},
            ),
            TextPrompt(prompt="He was standing near the door."),
        ],
        [
            SamplingParams(temperature=0, max_tokens=100),
            SamplingParams(temperature=0, max_tokens=500, guidance_scale=1.5),
            SamplingParams(temperature=0.6, top_k=20, max_tokens=500, seed=1),
        ],
    )
    print(f"heard: {heard.outputs[0].text}")
    for output in (said, again):
        if audio := output.outputs[0].audio:
            print(f"said: {output.prompt}, {audio.seconds:.2f} s")


if __name__ == "__main__":
    main()
