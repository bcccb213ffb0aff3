# SPDX-License-Identifier: Apache-2.0
"""Bagpiper a second time: a plain loop over transformers' Qwen3 on the published tensors.

What it knows of the model is written down here from the facts; it shares no code with the engine
but the definition of seeded sampling.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3ForCausalLM

from tests.engine.streams.cases import Case
from tests.engine.streams.reference import Generated, Guidance, Reference
from tests.support.bagpiper import (
    CODEBOOK_SIZE,
    DECODING,
    FIRST_CODE,
    FIRST_TEXT,
    NUM_CODEBOOKS,
    VOCABULARY,
    backbone_config,
    bagpiper_tensors,
    ids_of,
)

BEGIN, EOS, EOT, USER, ASSISTANT, TEXT, AUDIO = 1, 2, 3, 5, 6, 7, 8
_TURN: list[int | str] = [BEGIN, USER, TEXT, "text", EOS, ASSISTANT]


class BagpiperReference(Reference):
    """The model, and how it generates.

    Args:
        answers: whether text is the whole answer; else audio follows it.
    """

    def __init__(self, answers: bool = False) -> None:
        tensors = bagpiper_tensors()
        config = backbone_config()
        config.vocab_size = VOCABULARY
        self._model = Qwen3ForCausalLM(config).eval()
        own = {n: t for n, t in tensors.items() if n.startswith(("model.", "lm_head."))}
        self._model.load_state_dict(own)
        self._embedding, self._head = own["model.embed_tokens.weight"], own["lm_head.weight"]
        self._offsets = tensors["stream_emb.weight"].clone()
        self._offsets[0] = 0
        pads = [FIRST_CODE + (CODEBOOK_SIZE + 1) * k for k in range(NUM_CODEBOOKS)]
        self.delays = list(range(NUM_CODEBOOKS))
        self.num_streams = NUM_CODEBOOKS
        self.slices = [[pad + 1, pad + 1 + CODEBOOK_SIZE] for pad in pads]
        self.pads = [0] * NUM_CODEBOOKS
        own_pads = {"token_ids": pads, "sampled": True}
        self.fills = {"lead_in": own_pads, "tail": own_pads}
        self.outside = 0
        self.text_slice = [FIRST_TEXT, FIRST_CODE]
        then: dict[str, Any] = (
            {"to": "end"} if answers else {"to": "audio", "forced": [ASSISTANT, AUDIO]}
        )
        first_steps = {name: {"first_step": DECODING[name]["min_step"]} for name in DECODING}
        self.phases = {
            "text": {
                "name": "text",
                "kind": "text",
                "begin_tokens": [TEXT],
                "transitions": [{"token": token} | then for token in (EOS, EOT)],
                "end_rule": first_steps["text"],
            },
            "audio": {
                "name": "audio",
                "kind": "audio",
                "begin_tokens": [AUDIO],
                "transitions": [{"token": token, "to": "end"} for token in (EOS, EOT)],
                "end_rule": {"kind": "after_tail"} | first_steps["audio"],
            },
        }
        self.first_phase = "text"
        self.segment_scope = True
        self.tasks = {
            "text_to_audio": [*_TURN, TEXT],
            "text_to_text": [*_TURN, TEXT],
            "caption_to_audio": [*_TURN, AUDIO],
        }
        self.codebook_streams = list(range(NUM_CODEBOOKS))
        self._skipped = [set(), *[{0}] * (NUM_CODEBOOKS - 1)]
        self._codec = None
        self._tokenizer = lambda text, add_special_tokens: {"input_ids": ids_of(text)}

    def expected(self, case: Case) -> Generated:
        """What a case's request makes."""
        scale = case.options.get("guidance_scale", 1.0)
        guidance = None
        if scale != 1.0:
            # Pads before a stream's first frame are sampled, and so guided too.
            first = -max(self.delays)
            guidance = Guidance(scale, ((1 - scale, None),), first, audio_only=True)
        return self.generate(case.reference_prompt(self), case.settings(self.num_streams), guidance)

    def _lanes(
        self,
        guidance: Guidance,
        history: list[list[int]],
        stretch: int,
        conditional: torch.Tensor,
    ) -> list[tuple[float, torch.Tensor]]:
        """The null lane has id 0 in all streams, then the token that begins audio."""
        ((weight, _),) = guidance.lanes
        steps = [list(self.pads)] * (stretch - 1) + [[AUDIO, *self.pads[1:]]]
        return super()._lanes(
            Guidance(guidance.weight, ((weight, steps),)), history, stretch, conditional
        )
