# SPDX-License-Identifier: Apache-2.0
"""MusicGen by transformers, twice: its own `generate`, and a plain loop over its forward.

The loop is for what `generate` does not have: negative prompts, three lanes, sampling by seed. It
shares no code with the engine, but for the definition of seeded sampling
(`sample_streams_reference`), which is a contract in itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from vllm.unison.ops.sample import SampleArguments
from vllm.unison.ops.sample_reference import sample_streams_reference

Lane = tuple[float, str | None]
"""Weight, and the text that is attended to."""


@dataclass(frozen=True)
class Sampling:
    """Of seeded sampling; top_k 0 is off."""

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class MusicReference:
    """A published folder, in float32.

    Attributes:
        model: transformers' own.
        num_streams: K.
        delays: of the streams.
        kind: of the model.
    """

    kind: Any = MusicgenForConditionalGeneration

    def __init__(self, folder: Path) -> None:
        self.model: Any = self.kind.from_pretrained(folder).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        decoder = self.model.config.decoder
        self.num_streams: int = decoder.num_codebooks
        self.delays = [k // decoder.audio_channels for k in range(self.num_streams)]
        self._channels: int = decoder.audio_channels
        self._fill: int = decoder.vocab_size

    @torch.inference_mode()
    def generate(
        self,
        text: str,
        num_frames: int,
        scale: float,
        clip: NDArray[np.float32] | None = None,
        **features: torch.Tensor,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What `generate` makes greedily.

        Args:
            text: the description.
            num_frames: to generate.
            scale: of guidance; 1 is none.
            clip: [num_samples] or [num_samples, 2] to go on from, whole frames long.
            features: more arguments of `generate`.

        Returns:
            codes [num_frames, num_streams] and samples [num_samples] or [num_samples, 2], the
            clip's included.
        """
        decoded: list[torch.Tensor] = []
        codec = self.model.audio_encoder
        decode = codec.decode

        def recording(codes: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            decoded.append(codes[0, 0])
            return decode(codes, *args, **kwargs)

        inputs = self._tokenizer(text, return_tensors="pt")
        more: dict[str, Any] = dict(features)
        if clip is not None:
            shaped = clip[None] if clip.ndim == 1 else clip.T
            more["input_values"] = torch.from_numpy(np.ascontiguousarray(shaped))[None]
        codec.decode = recording
        try:
            audio = self.model.generate(
                **inputs,
                **more,
                do_sample=False,
                guidance_scale=scale,
                max_new_tokens=num_frames + max(self.delays),
            )
        finally:
            del codec.decode
        if self._channels == 1:
            return decoded[0].T.numpy(), audio[0, 0].numpy()
        codes = torch.stack(decoded, dim=1).flatten(0, 1)
        return codes.T.numpy(), audio[0].T.numpy()

    @torch.inference_mode()
    def loop(
        self,
        lanes: Sequence[Lane],
        num_frames: int,
        sampling: Sampling | None = None,
        prompt: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """[num_frames, num_streams] codes that follow a prompt, column by column.

        Args:
            lanes: the conditional lane and the others.
            num_frames: to generate.
            sampling: None is greedy.
            prompt: [n, num_streams] codes to go on from.
        """
        states = self._states_of(lanes)
        given = 0 if prompt is None else len(prompt)
        total = given + num_frames
        columns = [[self._fill] * self.num_streams]
        for step in range(total + max(self.delays)):
            column = [self._fill] * self.num_streams
            frames = [step - delay for delay in self.delays]
            free = [k for k, frame in enumerate(frames) if given <= frame < total]
            for k, frame in enumerate(frames):
                if 0 <= frame < given:
                    assert prompt is not None
                    column[k] = int(prompt[frame, k])
            if free:
                logits = self._logits(columns, lanes, states)
                for k in free:
                    position = self._num_prefix(states) + len(columns)
                    column[k] = self._choose(logits[k], sampling, position, k)
            columns.append(column)
        steps = np.array(columns[1:])
        undelayed = [steps[delay : delay + total, k] for k, delay in enumerate(self.delays)]
        return np.stack(undelayed, axis=1)[given:]

    @torch.inference_mode()
    def logits(self, text: str, codes: NDArray[np.int64]) -> torch.Tensor:
        """[num_columns, num_streams, codebook_size] of all columns of audio, unguided."""
        total = len(codes)
        columns = [[self._fill] * self.num_streams]
        for step in range(total + max(self.delays)):
            frames = [step - delay for delay in self.delays]
            columns.append(
                [
                    int(codes[frame, k]) if 0 <= frame < total else self._fill
                    for k, frame in enumerate(frames)
                ]
            )
        ids = torch.tensor(columns[:-1]).T
        states, mask = self._states(text)
        output = self.model.decoder(
            input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=mask
        ).logits
        return output.transpose(0, 1)

    def codes_of(self, clip: NDArray[np.float32]) -> NDArray[np.int64]:
        """[num_frames, num_streams] codes that transformers' codec gives for a clip."""
        channels = [clip] if clip.ndim == 1 else list(clip.T)
        coded = []
        with torch.inference_mode():
            for samples in channels:
                values = torch.from_numpy(np.ascontiguousarray(samples))[None, None]
                coded.append(self.model.audio_encoder.encode(values).audio_codes[0, 0])
        return torch.stack(coded, dim=1).flatten(0, 1).T.numpy()

    def _states_of(self, lanes: Sequence[Lane]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Per lane its states and their mask."""
        return [self._states(text) for _, text in lanes]

    def _num_prefix(self, states: list[tuple[torch.Tensor, torch.Tensor | None]]) -> int:
        """Positions of the conditional lane that come before the start column."""
        return 0

    def _states(self, text: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        if text is None:
            width = self.model.config.decoder.hidden_size
            return torch.zeros(1, 1, width), torch.zeros(1, 1, dtype=torch.long)
        inputs = self._tokenizer(text, return_tensors="pt")
        states = self.model.text_encoder(**inputs).last_hidden_state
        if hasattr(self.model, "enc_to_dec_proj"):
            states = self.model.enc_to_dec_proj(states)
        return states, inputs.attention_mask

    def _logits(
        self,
        columns: list[list[int]],
        lanes: Sequence[Lane],
        states: list[tuple[torch.Tensor, torch.Tensor | None]],
    ) -> torch.Tensor:
        """[num_streams, codebook_size] merged logits after the last column."""
        ids = torch.tensor(columns).T
        merged = torch.zeros(())
        for (weight, _), (of_lane, mask) in zip(lanes, states, strict=True):
            output = self.model.decoder(
                input_ids=ids, encoder_hidden_states=of_lane, encoder_attention_mask=mask
            )
            merged = merged + weight * output.logits[:, -1]
        return merged

    @staticmethod
    def _choose(logits: torch.Tensor, sampling: Sampling | None, position: int, stream: int) -> int:
        if sampling is None:
            return int(logits.argmax())
        count = len(logits)
        token = torch.empty((1, 1), dtype=torch.int32)
        sample_streams_reference(
            logits[None, None],
            SampleArguments(
                candidate_ids=torch.arange(count, dtype=torch.int32)[None],
                masks=torch.ones(1, 1, count, dtype=torch.bool),
                mask_index=torch.zeros(1, dtype=torch.int32),
                temperature=torch.tensor([[sampling.temperature]]),
                top_k=torch.tensor([[sampling.top_k]], dtype=torch.int32),
                top_p=torch.tensor([[sampling.top_p]]),
                seed=torch.tensor([sampling.seed]),
                position=torch.tensor([position]),
                first_stream=stream,
                forced=torch.full((1, 1), -1, dtype=torch.int32),
                tokens=token,
            ),
        )
        return int(token)
