# SPDX-License-Identifier: Apache-2.0
"""SpeechLM: any decoder backbone with several token streams per step.

The input embedding of a step is the sum of its streams' embeddings; the output head is the
backbone's own, of which a phase multiplies only the rows that it may emit. Everything specific to a
model is data in its config.json.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors
from vllm.unison.formats.expected_tensors import ExpectedTensors, expected_tensors
from vllm.unison.model.output_heads import Heads
from vllm.unison.model.spec import SpeechSpec, multistream_spec
from vllm.unison.ops.embed import embed_streams
from vllm.unison.ops.extension import load_extension
from vllm.unison.ops.packed_product import packed_product


class SpeechLMForConditionalGeneration(nn.Module):
    """A multi-stream model around a vLLM decoder backbone.

    The rows of the embedding and of the head that codec streams need are kept whole on every
    tensor-parallel rank: they are few, and an audio step then needs no exchange for its logits.

    Attributes:
        auxiliary_ids: [max_num_batched_tokens, num_streams - 1] int32, the ids of streams 1.. that
            `forward` adds to the embeddings of its tokens; written before each step.
    """

    _audio_head: torch.Tensor
    _inputs_embeds: torch.Tensor

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        load_extension()
        spec = multistream_spec(vllm_config.model_config)
        assert spec is not None
        config = vllm_config.model_config.hf_config.backbone_config
        self.backbone = self._make_backbone(vllm_config, config, maybe_prefix(prefix, "backbone"))
        self._spec = spec
        self._backbone_config = config
        self._heads = Heads(spec.layout, spec.table)
        self._tied = bool(config.tie_word_embeddings)
        self._tensor_parallel = get_tensor_model_parallel_world_size() > 1
        processor = self.backbone.logits_processor
        if processor.soft_cap is not None:
            raise ValueError("backbone_config: a soft cap on logits is not supported")
        self._logit_scale = float(processor.scale)
        layout, hidden = spec.layout, config.hidden_size
        if config.vocab_size != layout.vocabulary_size:
            raise ValueError(
                f"stream_layout.vocabulary_size must be the backbone's vocab_size "
                f"{config.vocab_size}, not {layout.vocabulary_size}"
            )

        auxiliary_vocabulary = _auxiliary_vocabulary(spec)
        row_of = torch.zeros(layout.vocabulary_size, dtype=torch.int32)
        row_of[auxiliary_vocabulary] = torch.arange(
            1, len(auxiliary_vocabulary) + 1, dtype=torch.int32
        )
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.register_buffer("_auxiliary_vocabulary", auxiliary_vocabulary, persistent=False)
        self.register_buffer("_auxiliary_row", row_of, persistent=False)
        self.register_buffer(
            "auxiliary_ids",
            torch.full((tokens, layout.num_streams - 1), _pad_of(spec), dtype=torch.int32),
            persistent=False,
        )
        # Piecewise CUDA graphs of the backbone read their input where it was at their capture.
        self.register_buffer("_inputs_embeds", torch.zeros(tokens, hidden), persistent=False)
        # Row 0 stays zero: it is what ids that add nothing are mapped to.
        self.register_buffer(
            "_auxiliary_embedding",
            torch.zeros(len(auxiliary_vocabulary) + 1, hidden),
            persistent=False,
        )
        ids = [torch.from_numpy(group.candidate_ids).flatten() for group in self._heads.groups]
        candidates = torch.cat(ids).long() if ids else torch.empty(0, dtype=torch.long)
        # Tensors of arrays are the host's, whatever device the model is being made on.
        candidates = candidates.to(row_of.device)
        self.register_buffer("_candidates", candidates, persistent=False)
        self.register_buffer("_audio_head", torch.zeros(len(candidates), hidden), persistent=False)
        self.register_buffer(
            "_audio_bias",
            torch.zeros(len(candidates)) if spec.has_head_offsets else None,
            persistent=False,
        )
        skipped = torch.zeros(layout.vocabulary_size, dtype=torch.bool)
        skipped[list(spec.primary_skip_ids)] = True
        self.register_buffer(
            "_primary_skipped", skipped if spec.primary_skip_ids else None, persistent=False
        )
        self._primary_table: torch.Tensor | None = None
        self._audio_product: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.head_offsets: nn.Parameter | None = None
        if spec.has_head_offsets:
            self.head_offsets = nn.Parameter(
                torch.zeros(layout.num_streams, hidden), requires_grad=False
            )

    def _make_backbone(
        self, vllm_config: VllmConfig, config: PreTrainedConfig, prefix: str
    ) -> nn.Module:
        """vLLM's class of the configuration's architecture."""
        return init_vllm_registered_model(
            vllm_config=vllm_config,
            hf_config=config,
            architectures=config.architectures,
            prefix=prefix,
        )

    @staticmethod
    def get_model_state_cls() -> type:
        """What upstream's V2 model runner keeps of the model."""
        # The V1 runner needs nothing of V2's.
        from vllm.unison.worker.v2_model_state import StreamModelState

        return StreamModelState

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens, hidden_size] sum of all streams' embeddings.

        Stream 0 is `input_ids` [num_tokens]; the others are the first rows of `auxiliary_ids`. The
        result is a buffer that the next call writes again.
        """
        out = self._inputs_embeds[: input_ids.shape[0]]
        auxiliary_ids = self.auxiliary_ids[: input_ids.shape[0]]
        tables = (self._auxiliary_embedding, self._auxiliary_row, auxiliary_ids)
        if self._primary_table is not None:
            # One pass over the rows of all streams.
            return embed_streams(
                self._primary_table, input_ids, self._primary_skipped, *tables, out=out
            )
        embedded = self.backbone.embed_input_ids(input_ids)
        if self._primary_skipped is not None:
            embedded = embedded.masked_fill(self._primary_skipped[input_ids][:, None], 0)
        return embed_streams(embedded, None, None, *tables, out=out)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """[num_tokens, hidden_size] final hidden states of the backbone."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_input_ids(input_ids)
        return self.backbone(None, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The hidden states as they are: the stream sampler multiplies the heads, by phase."""
        return hidden_states

    def text_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, text candidates] logits of stream 0, candidates being Heads.text_range."""
        begin, end = self._heads.text_range
        if self.head_offsets is not None:
            hidden_states = hidden_states + self.head_offsets[0]
        if self._tensor_parallel:
            logits = self.backbone.compute_logits(hidden_states)
            assert logits is not None
            return logits[:, begin:end]
        logits = F.linear(hidden_states, self.backbone.lm_head.weight[begin:end])
        return logits * self._logit_scale if self._logit_scale != 1.0 else logits

    def audio_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, Heads.audio_columns] logits of all streams.

        (h + offset_k) . w = h . w + offset_k . w, so the per-stream offsets are a bias that is
        known when the weights are, and one matrix product serves all streams.
        """
        if self._audio_product is not None:
            return self._audio_product(hidden_states)
        return F.linear(hidden_states, self._audio_head, self._audio_bias)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint: `backbone.*` in the backbone's own names, and `head_offsets`.

        Raises:
            ValueError: naming a tensor that is missing, unknown or of a wrong shape.
        """
        expected = self.expected_tensors()
        return self.load_checked(weights if expected is None else expected.checked(weights))

    def expected_tensors(self) -> ExpectedTensors | None:
        """The tensors of a checkpoint; None if transformers does not know the backbone."""
        offsets = self.head_offsets
        others = {} if offsets is None else {"head_offsets": tuple(offsets.shape)}
        return expected_tensors(self._backbone_config, others)

    def load_checked(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load tensors of these names."""
        return AutoWeightsLoader(self).load_weights(weights)

    def _embeds_by_table(self, embedding: VocabParallelEmbedding) -> bool:
        """Whether the backbone embeds an id by its row of the table and nothing else."""
        table = embedding.weight
        if not table.is_floating_point():
            return False
        ids = torch.arange(min(16, len(self._auxiliary_row)), device=table.device)
        return torch.equal(self.backbone.embed_input_ids(ids), table[ids])

    @torch.inference_mode()
    def prepare_streams(self) -> None:
        """Take the rows that codec streams need out of the loaded embedding and head.

        Called once, on all ranks, when the weights are loaded.
        """
        embedding = self.backbone.model.embed_tokens
        if not self._tensor_parallel and self._embeds_by_table(embedding):
            self._primary_table = embedding.weight.detach()
        self._auxiliary_embedding[1:] = _whole_rows(embedding, self._auxiliary_vocabulary)
        rows = self._head_rows(self._candidates.clamp(min=0))
        self._audio_head.copy_(rows * self._logit_scale)
        if self.head_offsets is not None:
            self._fill_audio_bias(rows, self.head_offsets.float())
        if current_platform.is_cpu() and self._audio_head.dtype == torch.bfloat16:
            self._audio_product = packed_product(self._audio_head, self._audio_bias)
            self._audio_head = self._audio_head[:0]

    def _head_rows(self, ids: torch.Tensor) -> torch.Tensor:
        """[len(ids), hidden_size] rows of the head for some ids."""
        head = self.backbone.model.embed_tokens if self._tied else self.backbone.lm_head
        return _whole_rows(head, ids)

    def _fill_audio_bias(self, head_rows: torch.Tensor, offsets: torch.Tensor) -> None:
        for group in self._heads.groups:
            for row in range(group.num_streams):
                first = group.first_column + row * group.width
                columns = slice(first, first + group.width)
                offset = offsets[group.first_stream + row]
                biases = (head_rows[columns].float() @ offset) * self._logit_scale
                self._audio_bias[columns] = biases


def _whole_rows(layer: VocabParallelEmbedding, ids: torch.Tensor) -> torch.Tensor:
    """[len(ids), hidden_size] rows of a weight that is split over ranks by its vocabulary."""
    shard = layer.shard_indices
    local = ids - shard.org_vocab_start_index
    owned = (local >= 0) & (ids < shard.org_vocab_end_index)
    rows = layer.weight[torch.where(owned, local, 0)]
    # One rank owns each row and the others add zeros: the sum is exact.
    return tensor_model_parallel_all_reduce(rows.masked_fill(~owned[:, None], 0))


def _auxiliary_vocabulary(spec: SpeechSpec) -> torch.Tensor:
    """Ids that streams 1.. may carry and that add something to the input embedding, sorted."""

    layout = spec.layout
    ids: set[int] = set()
    for place in (layout.pads, layout.lead_in, layout.end, layout.tail):
        ids |= set(place.token_ids[1:])
    for more in layout.more_candidates[1:]:
        ids |= set(more)
    for begin, end in layout.slices[1:]:
        ids |= set(range(begin, end))
    return torch.tensor(sorted(ids - set(spec.auxiliary_skip_ids)), dtype=torch.long)


def _pad_of(spec: SpeechSpec) -> int:

    return spec.layout.pad_token_ids[-1]
