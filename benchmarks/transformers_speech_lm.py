# SPDX-License-Identifier: Apache-2.0
"""A SpeechLM checkpoint for transformers' own `generate`, the way transformers' MusicGen does it.

The rows of `generate` are streams: input ids are [batch * streams, length] and logits
[batch * streams, length, codebook]. Embeddings are summed over the streams, delays are a pattern of
forced ids over the whole sequence, and guidance doubles the batch when inputs are prepared; it is
halved again by transformers' own ClassifierFreeGuidanceLogitsProcessor. Cache, loop, temperature,
top-k and sampling are transformers' own, and so is the Llama backbone.

Ids are a stream's own: below `codebook` the codes of the stream's slice, and from there on the ids
of the checkpoint's vocabulary, of which prompts and pads are made.

A static batch of requests runs to its full length; no request ends itself. The null prompt is as
many pads as the prompt has ids (`"null_prompt": "pads"`), so that no row of the doubled batch is
padded and attention needs no mask, which is transformers' fastest case.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import GenerationConfig, GenerationMixin, LlamaConfig, LlamaModel, PreTrainedModel
from transformers.generation import (
    ClassifierFreeGuidanceLogitsProcessor,
    LogitsProcessorList,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

FREE = -1
"""A cell of the delay pattern that generation fills."""


class TransformersSpeechLM(PreTrainedModel, GenerationMixin):
    """The model; `load` makes one.

    Args:
        config: of the backbone.
        stream_layout: the checkpoint's `stream_layout`; its slices must be equally long.
    """

    config_class = LlamaConfig
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: LlamaConfig, stream_layout: dict[str, Any]) -> None:
        super().__init__(config)
        slices = stream_layout["slices"]
        lengths = {end - begin for begin, end in slices}
        if len(lengths) != 1:
            raise ValueError(f"stream_layout.slices must be equally long, not {sorted(lengths)}")
        self.codebook = lengths.pop()
        self.num_streams = len(slices)
        self.delays: list[int] = list(stream_layout["delays"])
        self.slice_begins = [begin for begin, _ in slices]
        pads = stream_layout["pad_token_ids"]
        pads = [pads] * self.num_streams if isinstance(pads, int) else list(pads)
        self.pads = [self.codebook + pad for pad in pads]
        self._rows = self.codebook + config.vocab_size
        self.model = LlamaModel(config)
        size = config.hidden_size
        self.embedding = torch.nn.Parameter(torch.empty(self.num_streams * self._rows, size))
        self.heads = torch.nn.Linear(size, self.num_streams * self.codebook)
        first_rows = torch.arange(self.num_streams)[:, None] * self._rows
        self.register_buffer("first_rows", first_rows, persistent=False)
        self.post_init()

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype) -> TransformersSpeechLM:
        """A checkpoint's weights, with attention by PyTorch's scaled_dot_product_attention.

        Raises:
            ValueError: the backbone is not a Llama, or the slices' lengths differ.
        """
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text())
        backbone = dict(config["backbone_config"])
        if backbone.pop("model_type") != "llama":
            raise ValueError("backbone_config.model_type must be 'llama'")
        llama = LlamaConfig(**backbone)
        llama._attn_implementation = "sdpa"
        # Codes are local ids, among which the shared vocabulary's end token is an ordinary code.
        llama.eos_token_id = None
        model = cls(llama, config["stream_layout"])
        weights = load_file(folder / "model.safetensors")
        own = {
            name.removeprefix("backbone."): weight.float()
            for name, weight in weights.items()
            if name.startswith("backbone.model.")
        }
        missing, unexpected = model.load_state_dict(own, strict=False)
        if unexpected or set(missing) != {"embedding", "heads.weight", "heads.bias"}:
            raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
        table = own["model.embed_tokens.weight"]
        head = weights.get("backbone.lm_head.weight", table).float()
        offsets = weights.get("head_offsets")
        with torch.no_grad():
            model._fill(table, head, offsets, config.get("embedding") or {})
        return model.to(dtype).eval()

    def forward(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch * streams, length, codebook] of `input_ids` [batch * streams, length]."""
        length = input_ids.shape[1]
        rows = input_ids.view(-1, self.num_streams, length) + self.first_rows
        output = self.model(
            inputs_embeds=F.embedding(rows, self.embedding).sum(1),
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        hidden = output.last_hidden_state[:, -logits_to_keep:]
        logits = self.heads(hidden).unflatten(-1, (self.num_streams, self.codebook))
        return CausalLMOutputWithPast(
            logits=logits.transpose(1, 2).flatten(0, 1),
            past_key_values=output.past_key_values,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        delay_pattern: torch.Tensor | None = None,
        null_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The newest ids, forced where the pattern forces them; twice if guided.

        `attention_mask` is all ones, and the backbone is faster without.
        """
        assert delay_pattern is not None
        length = input_ids.shape[1]
        begin = length - (next_sequence_length or length)
        forced = delay_pattern[:, begin:length]
        input_ids = torch.where(forced == FREE, input_ids[:, begin:], forced)
        if null_ids is not None:
            # After the prompt both lanes hold what was sampled.
            null_ids = null_ids[:, begin:]
            null = torch.cat([null_ids, input_ids[:, null_ids.shape[1] :]], dim=1)
            input_ids = torch.cat([input_ids, null])
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": 1,
        }

    @torch.inference_mode()
    def generate_codes(
        self,
        prompts: Sequence[Sequence[int]],
        num_frames: int,
        guidance_scale: float | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
    ) -> torch.Tensor:
        """[batch, num_frames, streams] codes of a static batch.

        Args:
            prompts: ids of stream 0, as the checkpoint's vocabulary has them; equally long.
            num_frames: of each request.
            guidance_scale: above 1; None is unguided.
            temperature: 0 is greedy.
            top_k: 0 is off.

        Raises:
            ValueError: prompts are not equally long, or the scale is at most 1.
        """
        if len({len(prompt) for prompt in prompts}) != 1:
            raise ValueError("prompts must be equally long")
        pads = torch.tensor(self.pads)
        length, max_delay = len(prompts[0]), max(self.delays)
        ids = pads[None, :, None].repeat(len(prompts), 1, length)
        ids[:, 0] = self.codebook + torch.tensor(prompts)
        pattern = pads[None, :, None].repeat(len(prompts), 1, length + num_frames + max_delay)
        pattern[:, :, :length] = ids
        for stream, delay in enumerate(self.delays):
            pattern[:, stream, length + delay : length + delay + num_frames] = FREE
        processors = LogitsProcessorList()
        null_ids = None
        if guidance_scale is not None:
            processors.append(ClassifierFreeGuidanceLogitsProcessor(guidance_scale))
            null_ids = pads.repeat(len(prompts))[:, None].expand(-1, length)
        sampling = {"temperature": temperature, "top_k": top_k} if temperature > 0 else {}
        emitted = self.generate(
            ids.flatten(0, 1),
            generation_config=GenerationConfig(
                max_new_tokens=num_frames + max_delay,
                do_sample=temperature > 0,
                use_cache=True,
                **sampling,
            ),
            logits_processor=processors,
            attention_mask=torch.ones(len(prompts) * self.num_streams, length, dtype=torch.long),
            delay_pattern=pattern.flatten(0, 1),
            null_ids=null_ids,
        ).view(len(prompts), self.num_streams, -1)
        return torch.stack(
            [
                emitted[:, stream, length + delay : length + delay + num_frames]
                for stream, delay in enumerate(self.delays)
            ],
            dim=-1,
        )

    def _fill(
        self,
        table: torch.Tensor,
        head: torch.Tensor,
        offsets: torch.Tensor | None,
        skipped: dict[str, Any],
    ) -> None:
        """Embedding and heads of each stream, from the shared ones."""
        for stream, begin in enumerate(self.slice_begins):
            codes = slice(begin, begin + self.codebook)
            skip_ids = skipped.get("auxiliary_skip_ids" if stream else "primary_skip_ids") or []
            rows = table.clone()
            rows[list(skip_ids)] = 0
            first = stream * self._rows
            self.embedding[first : first + self._rows] = torch.cat([rows[codes], rows])
            own = slice(stream * self.codebook, (stream + 1) * self.codebook)
            self.heads.weight[own] = head[codes]
            # (h + offset) . w = h . w + offset . w
            offset = torch.zeros(table.shape[1]) if offsets is None else offsets[stream].float()
            self.heads.bias[own] = head[codes] @ offset
