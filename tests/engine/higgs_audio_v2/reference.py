# SPDX-License-Identifier: Apache-2.0
"""Higgs Audio v2 by transformers, twice: its own `generate`, and a plain loop over its forward.

The loop is for sampling by seed, which `generate` does not have. It shares no code with the engine,
but for the definition of seeded sampling (`sample_streams_reference`), which is a contract in
itself. Prompts are written out here as the authors' template writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, HiggsAudioV2ForConditionalGeneration
from transformers.models.higgs_audio_v2.generation_higgs_audio_v2 import (
    HiggsAudioV2DelayPatternLogitsProcessor,
)

from vllm.unison.ops.sample import SampleArguments
from vllm.unison.ops.sample_reference import sample_streams_reference

SYSTEM = "Generate audio following instruction."
SECOND_DRAW = 64
"""What the number of a stream is raised by where it is drawn again."""

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """Of seeded sampling; top_k 0 is off, and so is a window of 0."""

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    window: int = 0
    max_repeats: int = 2


def turn(role: str, text: str) -> str:
    """A turn as it is written."""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"


def written(*turns: str) -> str:
    """A prompt; AUDIO in it stands for a recording."""
    begin = f"<|start_header_id|>assistant<|end_header_id|>\n\n{BEGIN}"
    return "<|begin_of_text|>" + "".join(turns) + begin


BEGIN = "<|audio_out_bos|>"
AUDIO = f"{BEGIN}<|AUDIO_OUT|><|audio_eos|>"


class HiggsReference:
    """A published folder with transformers' names, in float32.

    Attributes:
        num_redrawn: streams that the last loop has drawn again.
    """

    def __init__(self, folder: Path) -> None:
        self.model: Any = HiggsAudioV2ForConditionalGeneration.from_pretrained(folder).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        config = self.model.config
        self._books, self._ids = config.num_codebooks, config.codebook_size
        self.begin, self.end = config.audio_stream_bos_id, config.audio_stream_eos_id
        self.num_redrawn = 0

    def prompt(self, text: str, recordings: Sequence[Codes] = ()) -> dict[str, torch.Tensor]:
        """Inputs of the model for a written prompt, in whose placeholders recordings stand."""
        waiting = [self._delayed(codes) for codes in recordings]
        rows = list(waiting)
        while "<|AUDIO_OUT|>" in text:
            count, late = len(waiting.pop(0)), self._books - 1
            placeholders = "<|AUDIO>" * (count - late) + "<|reserved_special_token_6|>" * late
            text = text.replace("<|AUDIO_OUT|>", placeholders, 1)
        text = text.replace("<|AUDIO>", "<|AUDIO_OUT|>")
        inputs = dict(self._tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        if rows:
            audio = torch.from_numpy(np.concatenate(rows))[None]
            inputs["audio_input_ids"] = audio
            inputs["audio_input_ids_mask"] = torch.ones(audio.shape[:2], dtype=torch.bool)
        return inputs

    def _delayed(self, codes: Codes) -> Codes:
        """[T + 2 + 7, 8]: a start, the codes and an end, each stream a step later than the last."""
        length = len(codes) + 2 + self._books - 1
        rows = np.full((length, self._books), self.end)
        for stream in range(self._books):
            rows[: stream + 1, stream] = self.begin
            rows[stream + 1 : stream + 1 + len(codes), stream] = codes[:, stream]
        return rows

    @torch.inference_mode()
    def generate(self, inputs: dict[str, torch.Tensor], max_steps: int) -> Codes:
        """[num_steps, 8] what `generate` makes greedily, without its resampling."""
        given = inputs["audio_input_ids"].shape[1] if "audio_input_ids" in inputs else 0
        self.model.generation_config.ras_win_len = None
        rows = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_steps)
        steps: Codes = rows[0].numpy()[given:]
        return steps

    @torch.inference_mode()
    def loop(self, inputs: dict[str, torch.Tensor], sampling: Sampling, limit: int) -> Codes:
        """[num_steps, 8] steps, sampled one after another.

        Args:
            inputs: of `prompt`.
            sampling: a temperature of 0 is greedy.
            limit: frames after which the streams end in turn, whatever the model says.
        """
        self.num_redrawn = 0
        config = self.model.config
        processor = HiggsAudioV2DelayPatternLogitsProcessor(
            [k + 1 for k in range(self._books)],
            config.audio_bos_token_id,
            config.audio_delay_token_id,
            self.begin,
            self.end,
            self._books,
            self._ids,
        )
        text = inputs["input_ids"]
        audio = inputs.get("audio_input_ids")
        num_prompt = text.shape[1]
        steps: list[list[int]] = []
        while True:
            known = {} if audio is None else {"audio_input_ids": audio}
            if audio is not None:
                known["audio_input_ids_mask"] = torch.ones(audio.shape[:2], dtype=torch.bool)
            logits = self.model(input_ids=text, **known).logits[:, -1].float()
            allowed = processor(text, logits).isfinite()
            raw = logits.view(self._books, self._ids)
            position = num_prompt + len(steps)
            # The first step begins all streams and holds no frame.
            over = [len(steps) - 1 >= limit + k for k in range(self._books)]
            for k in np.flatnonzero(over):
                allowed[k] = torch.arange(self._ids) == self.end
            row = [
                self._choose(raw[k], allowed[k], sampling, position, k) for k in range(self._books)
            ]
            for k, chosen in enumerate(row):
                past = [step[k] for step in steps[max(len(steps) - sampling.window, 0) :]]
                is_code = chosen < self.begin
                if sampling.window and is_code and past.count(chosen) >= sampling.max_repeats:
                    self.num_redrawn += 1
                    again = Sampling(sampling.seed)
                    everything = torch.ones(self._ids, dtype=torch.bool)
                    row[k] = self._choose(raw[k], everything, again, position, SECOND_DRAW + k)
            steps.append(row)
            new = torch.tensor([[row]])
            audio = new if audio is None else torch.cat([audio, new], dim=1)
            if all(chosen == self.end for chosen in row):
                break
            late = self.end in row or int(text[0, -1]) == config.audio_delay_token_id
            token = config.audio_delay_token_id if late else config.audio_token_id
            text = torch.cat([text, torch.tensor([[token]])], dim=1)
        return np.array(steps)

    def _choose(
        self,
        logits: torch.Tensor,
        allowed: torch.Tensor,
        sampling: Sampling,
        position: int,
        stream: int,
    ) -> int:
        if int(allowed.sum()) == 1 or sampling.temperature == 0:
            return int(logits.masked_fill(~allowed, -torch.inf).argmax())
        # The engine's candidates are the codes, then the end, then the beginning.
        order = torch.tensor([*range(self.begin), self.end, self.begin])
        token = torch.empty((1, 1), dtype=torch.int32)
        sample_streams_reference(
            logits[order].view(1, 1, -1),
            SampleArguments(
                candidate_ids=order.int()[None],
                masks=allowed[order].view(1, 1, -1),
                mask_index=torch.zeros(1, dtype=torch.int32),
                temperature=torch.full((1, 1), sampling.temperature),
                top_k=torch.full((1, 1), sampling.top_k, dtype=torch.int32),
                top_p=torch.full((1, 1), sampling.top_p),
                seed=torch.tensor([sampling.seed]),
                position=torch.tensor([position]),
                first_stream=stream,
                forced=torch.full((1, 1), -1, dtype=torch.int32),
                tokens=token,
            ),
        )
        return int(token)

    def frames(self, steps: Codes) -> Codes:
        """[num_frames, 8] codes of generated steps, as the authors' processor decodes them."""
        whole_ends = np.flatnonzero((steps == self.end).all(axis=1))
        stop = int(whole_ends[0]) if len(whole_ends) else len(steps)
        rows = steps[1:stop]
        count = max(len(rows) - self._books + 1, 0)
        undelayed = [rows[k : k + count, k] for k in range(self._books)]
        return np.stack(undelayed, axis=1).clip(0, self.begin - 1)
