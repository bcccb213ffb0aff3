# SPDX-License-Identifier: Apache-2.0
"""Higgs TTS 3 as a plain loop over transformers' Qwen3, from a published folder.

It knows what is said of the model: names of tensors, prompt, delays, and when rows end. It shares
no code with the engine but for the definition of seeded sampling, which is a contract in itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import HiggsAudioV2TokenizerConfig, PreTrainedTokenizerFast, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from tests.support.higgs3 import CODEBOOK_IDS, END, LEAD_IN, NUM_CODES, NUM_STREAMS, PREFIX
from vllm.unison.codecs.higgs_audio_codec import tokenizer_class
from vllm.unison.ops.sample import SampleArguments
from vllm.unison.ops.sample_reference import sample_streams_reference

Rows = NDArray[np.int64]

_SPECIALS = [[END, LEAD_IN]] + [[LEAD_IN, END]] * (NUM_STREAMS - 1)
_CANDIDATES = torch.tensor(
    [[*range(NUM_CODES), *specials] for specials in _SPECIALS], dtype=torch.int32
)
"""[8, 1026] in the engine's order, which random numbers are drawn in: the id that may end the
request comes right after the codes."""


@dataclass(frozen=True)
class Sampling:
    """Of all streams; without a seed greedy."""

    seed: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Speech:
    """What a request generates.

    Attributes:
        rows: [num_rows, 8] ids of the codebooks as sampled.
        codes: [num_frames, 8] what is decoded.
        ended: whether the model ended it, and not its limit.
    """

    rows: Rows
    codes: Rows
    ended: bool


class Higgs3Reference:
    """A model.

    Args:
        folder: as published.
    """

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        settings = dict(config["text_config"])
        assert settings.pop("rope_theta") is None
        rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
        self._body = Qwen3Model(Qwen3Config(**settings, rope_parameters=rope)).float().eval()
        tensors = load_file(folder / "model.safetensors")
        body = {
            name.removeprefix("body."): tensor
            for name, tensor in tensors.items()
            if name.startswith("body.")
        }
        missing, unknown = self._body.load_state_dict(body, strict=False)
        assert missing == ["embed_tokens.weight"] and not unknown
        self._text = tensors["tied.embedding.text_embedding.weight"]
        self._codes = tensors[f"{PREFIX}.embedding.weight"]
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.codec = tokenizer_class()(
            HiggsAudioV2TokenizerConfig.from_dict(config["codec_config"])
        ).eval()
        prefix, unused = f"{PREFIX}.model.", f"{PREFIX}.model.semantic_model.masked_spec_embed"
        self.codec.load_state_dict(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix) and name != unused
            }
        )

    def token(self, name: str) -> int:
        """The id of one of the tokenizer's own tokens."""
        return int(self._tokenizer.convert_tokens_to_ids(name))

    def ids(self, text: str) -> list[int]:
        """Of a text, without anything around it."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def reference_rows(self, clip: NDArray[np.float32]) -> Rows:
        """[num_frames + 7, 8] a clip's codes, delayed, between the ids before and after them."""
        padded = np.pad(clip, (0, max(0, 24000 - len(clip))))
        whole = np.pad(padded, (0, -len(padded) % 960))
        codes = self.codec.encode(torch.from_numpy(whole)[None, None]).audio_codes[0].T.numpy()
        rows = np.full((len(codes) + NUM_STREAMS - 1, NUM_STREAMS), END)
        for stream in range(NUM_STREAMS):
            rows[:stream, stream] = LEAD_IN
            rows[stream : stream + len(codes), stream] = codes[:, stream]
        return rows

    def prompt(
        self, text: str, clip: NDArray[np.float32] | None = None, said: str | None = None
    ) -> torch.Tensor:
        """[num_positions, hidden_size] inputs before the first row."""
        parts = [self._embed_text([self.token("<|tts|>")])]
        if said is not None:
            parts.append(self._embed_text([self.token("<|ref_text|>"), *self.ids(said)]))
        if clip is not None:
            parts.append(self._embed_text([self.token("<|ref_audio|>")]))
            parts.append(self._embed_rows(self.reference_rows(clip)))
        text_ids = [self.token("<|text|>"), *self.ids(text), self.token("<|audio|>")]
        return torch.cat([*parts, self._embed_text(text_ids)])

    @torch.inference_mode()
    def speak(
        self, prompt: torch.Tensor, max_frames: int, sampling: Sampling = Sampling()
    ) -> Speech:
        """Generate.

        Args:
            prompt: see `prompt`.
            max_frames: where the engine's limit ends it, all streams get the id after the last code
                once they have had so many frames.
            sampling: how rows are chosen.
        """
        inputs, cache = prompt, None
        rows: list[list[int]] = []
        end: int | None = None
        while end is None or len(rows) < end + NUM_STREAMS - 1:
            output = self._body(inputs_embeds=inputs[None], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits = (self._codes @ output.last_hidden_state[0, -1]).view(NUM_STREAMS, CODEBOOK_IDS)
            step = len(rows)
            row = self._choose(logits, len(prompt) + step, sampling)
            for stream in range(NUM_STREAMS):
                if step < stream:
                    row[stream] = LEAD_IN
                elif step >= max_frames + stream and end == max_frames:
                    row[stream] = END
            rows.append(row)
            if end is None and step >= NUM_STREAMS and row[0] == END:
                end = step
            elif end is None and step + 1 == max_frames:
                end = max_frames
            inputs = self._embed_rows(np.array([row]))
        found = np.array(rows)
        assert end is not None
        codes = np.stack([found[k : k + end, k] for k in range(NUM_STREAMS)], axis=1)
        ended = end < max_frames or bool(found[end, 0] == END and end != max_frames)
        return Speech(found, np.where(codes < NUM_CODES, codes, 0), ended)

    @torch.inference_mode()
    def samples(self, codes: Rows) -> NDArray[np.float32]:
        """[num_samples] of codes, decoded at once."""
        decoded = self.codec.decode(torch.from_numpy(codes.T.copy())[None]).audio_values
        return np.asarray(decoded.flatten().numpy())

    def _choose(self, logits: torch.Tensor, position: int, sampling: Sampling) -> list[int]:
        if sampling.seed is None:
            return [int(token) for token in logits.argmax(dim=1)]
        tokens = torch.empty((1, NUM_STREAMS), dtype=torch.int32)
        every = (1, NUM_STREAMS)
        sample_streams_reference(
            logits.gather(1, _CANDIDATES.long())[None],
            SampleArguments(
                candidate_ids=_CANDIDATES,
                masks=torch.ones(1, *_CANDIDATES.shape, dtype=torch.bool),
                mask_index=torch.zeros(1, dtype=torch.int32),
                temperature=torch.full(every, sampling.temperature),
                top_k=torch.full(every, sampling.top_k, dtype=torch.int32),
                top_p=torch.full(every, sampling.top_p),
                seed=torch.tensor([sampling.seed]),
                position=torch.tensor([position]),
                first_stream=0,
                forced=torch.full(every, -1, dtype=torch.int32),
                tokens=tokens,
            ),
        )
        return [int(token) for token in tokens[0]]

    def _embed_text(self, ids: list[int]) -> torch.Tensor:
        return self._text[ids]

    def _embed_rows(self, rows: Any) -> torch.Tensor:
        offsets = torch.arange(NUM_STREAMS) * CODEBOOK_IDS
        return self._codes[torch.as_tensor(rows) + offsets].sum(dim=1)
