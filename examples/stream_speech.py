# SPDX-License-Identifier: Apache-2.0
"""Speech from a server while the text comes, as from a chat model: over a WebSocket.

python examples/stream_speech.py http://localhost:8000
"""

import json
import os
import sys
import threading
import wave

from websockets.sync.client import ClientConnection, connect


def send_words(session: ClientConnection) -> None:
    for word in ["Please", "open", "the", "blue", "door.", "Then", "stop!", "Is", "it", "nine?"]:
        session.send(json.dumps({"type": "input.text", "text": word + " "}))
    session.send(json.dumps({"type": "session.close"}))


def main(url: str) -> None:
    address = url.replace("http", "ws", 1) + "/v1/audio/speech/stream"
    key = {"authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
    with connect(address, additional_headers=key) as session, wave.open("said.wav", "wb") as file:
        session.send(json.dumps({"type": "session.config", "response_format": "pcm", "seed": 1}))
        threading.Thread(target=send_words, args=(session,)).start()
        for message in session:  # until the server has said all
            if isinstance(message, bytes):
                file.writeframes(message)  # 16-bit samples: a player could have them at once
            elif (event := json.loads(message))["type"] == "error":
                raise SystemExit(event["message"])
            elif event["type"] == "audio.start":
                print("speaking:", event["sentence_text"])
                if event["sentence_index"] == 0:
                    file.setparams((event["channels"], 2, event["sample_rate"], 0, "NONE", ""))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["http://localhost:8000"]))
