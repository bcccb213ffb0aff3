# SPDX-License-Identifier: Apache-2.0
"""OpenAI's client with a running server: speech as it is made, voices, guidance, transcription.

    vllm serve unison-default
    python examples/openai_client.py http://localhost:8000

Fields that OpenAI's interface lacks go into `extra_body`; docs/serving.md lists them.
"""

import os
import sys
import wave

from openai import OpenAI


def main(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
    request = client.audio.speech.with_streaming_response.create(
        model="unison-default",
        voice="heart",
        input="The road to the village was closed by the snow.",
        response_format="pcm",  # 16-bit samples: a player could have each piece at once
        extra_body={"guidance_scale": 1.5, "seed": 1},
    )
    with request as response, wave.open("streamed.wav", "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        for piece in response.iter_bytes():
            print(f"{len(piece) / 2 / 16000:.2f} s of audio came")
            file.writeframes(piece)
    with open("streamed.wav", "rb") as recording:
        heard = client.audio.transcriptions.create(model="unison-default", file=recording)
    print(f"heard: {heard.text}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["http://localhost:8000"]))
