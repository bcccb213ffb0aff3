# SPDX-License-Identifier: Apache-2.0
"""What ESPnet's own class generates with the small random OpusLM models of the tests, as JSON.

    git clone https://github.com/jctian98/espnet && git -C espnet checkout 42ad2d217
    python -m venv espnet_venv
    espnet_venv/bin/pip install torch transformers pyyaml safetensors
    PYTHONPATH=espnet:. espnet_venv/bin/python tests/references/espnet/opuslm.py > FILE

FILE is tests/engine/opuslm/espnet.json. The commit is the last whose decoder emits the tail freely.
ARDelayLM is used as it is, around transformers' decoder as ESPnet wraps it. It also checks that the
class's own names of weights are those that the tests write.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import torch
from espnet2.speechlm.core_lm.abs_core_lm import SpeechLMInferenceOptions
from espnet2.speechlm.core_lm.ar_delay import ARDelayLM
from transformers import AutoModel

from tests.support import opuslm as model

SEED = 0
TEXT, AUDIO = model.BEGIN_TEXT, model.BEGIN_AUDIO


class Decoder(torch.nn.Module):
    """transformers' decoder with its cache, as ESPnet's class for it is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        config = model.backbone_config(kind, model.VOCABULARY)
        self.model = AutoModel.from_config(config)
        self.model.set_input_embeddings(None)
        self.d_model, self.n_ctx = config.hidden_size, 512
        self.cache: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.model(inputs_embeds=x, past_key_values=self.cache, use_cache=True)
        self.cache = found.past_key_values
        return found.last_hidden_state

    def init(self) -> None:
        self.cache = None

    reset = init


def load(kind: str) -> ARDelayLM:
    """ESPnet's class with the tests' weights, all of them."""
    books = model.FIRST_TEXT - model.FIRST_CODE
    lm = ARDelayLM(Decoder(kind), {}, model.VOCABULARY, books, model.NUM_STREAMS)
    state = {
        name.removeprefix("corelm."): tensor
        for name, tensor in model.tensors(kind, SEED).items()
        if name.startswith("corelm.")
    }
    lm.load_state_dict(state, strict=True)
    return lm.eval()


def masks(begin: int) -> dict[Any, torch.Tensor]:
    """What may be emitted, as ESPnet's speechlm_inference.py has it, and the first token forced."""
    unknown, text, audio = torch.ones(3, model.NUM_STREAMS, model.VOCABULARY, dtype=torch.bool)
    unknown[0, begin] = False
    unknown[1:, model.PAD] = False
    text[0, model.FIRST_TEXT : model.FIRST_TEXT + model.NUM_TEXT] = False
    audio[0, model.FIRST_UNIT : model.FIRST_CODE] = False
    text[1:, model.PAD] = audio[1:, model.PAD] = False
    for k in range(1, model.NUM_STREAMS):
        first = model.FIRST_CODE + (k - 1) * model.NUM_CODES
        audio[k, first : first + model.NUM_CODES] = False
    return {"unknown": unknown, TEXT: text, AUDIO: audio}


def generate(lm: ARDelayLM, frames: list[list[int]], begin: int, minlen: int) -> dict[str, Any]:
    """The steps that a prompt is continued with, up to the last of the tail; greedy."""
    options = SpeechLMInferenceOptions(
        search_algo="greedy_search",
        # The decoder subtracts what the delays take, and its first step is the modality's.
        minlenratio=(minlen + 2 + model.NUM_STREAMS - 1 + 0.5) / (len(frames) - 1),
        maxlenratio=100 / (len(frames) - 1),
        masks=masks(begin),
        nq=model.NUM_STREAMS,
    )
    steps: list[list[int]] = []
    undelay = lm.inverse_delay_interleave

    def recording(tokens: torch.Tensor) -> torch.Tensor:
        if tokens.dtype == torch.long and not steps:
            steps.extend(tokens[0].tolist())
        return undelay(tokens)

    lm.inverse_delay_interleave = recording
    prompt = torch.tensor([frames])
    (found,), _ = lm.inference(
        prompt, options, conti_feats=[], suffix=torch.zeros(1, 0, model.NUM_STREAMS).long()
    )
    lm.inverse_delay_interleave = undelay
    assert steps[0] == [begin] + [0] * 8
    return {
        "prompt": frames,
        "begin": begin,
        "steps": steps[1:],
        "frames": found[1:].tolist(),
    }


def main() -> None:
    """Print the outputs of all cases."""
    logging.disable()
    pads = [[model.PAD] * model.NUM_STREAMS] * (model.NUM_STREAMS - 1)

    def tokens(*ids: int) -> list[list[int]]:
        return [[token] + [model.PAD] * (model.NUM_STREAMS - 1) for token in ids]

    def spoken(text: str) -> list[list[int]]:
        return tokens(model.END, model.TTS, TEXT, *model.text_ids(text)) + pads

    def heard(num_frames: int, seed: int) -> list[list[int]]:
        clip = model.clip_ids(num_frames, seed)
        return tokens(model.END, model.ASR, AUDIO) + clip + pads

    def cloned(text: str, num_frames: int, seed: int) -> list[list[int]]:
        clip = model.clip_ids(num_frames, seed)
        clip += [[model.PAD] * model.NUM_STREAMS] * (model.SPEAKER_FRAMES - num_frames)
        prompt = tokens(model.END, model.CLONED_TTS, TEXT, *model.text_ids(text)) + pads
        return prompt + tokens(model.BEGIN_SPEAKER) + clip + pads

    found: dict[str, Any] = {}
    for kind in model.BACKBONES:
        lm = load(kind)
        found[kind] = {
            "text_to_speech": [
                generate(lm, spoken(text), AUDIO, 3)
                for text in ("a test", "more words to say", "x")
            ],
            "speech_to_text": [generate(lm, heard(n, n), TEXT, 0) for n in (5, 20)],
            "voice_prompted_speech": [generate(lm, cloned("hi", 7, 1), AUDIO, 3)],
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
