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
    first = llm.generate("The road to the village was closed by the snow.")[0].outputs[0].audio
    assert first is not None
    heard, said, again = llm.generate(
        [
            TextPrompt(prompt="", multi_modal_data={"audio": first}),
            TextPrompt(
                prompt="My mother has a small shop in the town.",
                mm_processor_kwargs={"voice": "joe"},
            ),
            TextPrompt(prompt="The road to the village was closed by the snow."),
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
