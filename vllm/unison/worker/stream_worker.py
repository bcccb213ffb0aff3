# SPDX-License-Identifier: Apache-2.0
"""The worker's part of multi-stream generation, whatever model runner drives it.

In each step a runner calls, in this order: `begin_step` and `admit` for what the scheduler sent,
`set_batch` once its batch is made up, `prepare_inputs` before the model's forward, `sample` with
the hidden states, and `end_step` and `collect` for what goes back to the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.distributed import get_tensor_model_parallel_rank
from vllm.unison.audio_decoder.chunk_schedule import ChunkSchedule
from vllm.unison.messages.conditioning import EncoderInput, PromptStates
from vllm.unison.messages.streams import StreamOutput, StreamUpdate
from vllm.unison.model.phases import Finish
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.sampler.batch_groups import GuidedBatch, GuidedBatchCache
from vllm.unison.sampler.phase_machine import StepTokens
from vllm.unison.sampler.slot_table import SlotTable, num_slots
from vllm.unison.sampler.stream_sampler import HeadModel, StreamSampler
from vllm.unison.worker.encoder_states import AttendingModel, EncoderStates
from vllm.unison.worker.pending_step import PendingStep
from vllm.unison.worker.prefix_embeddings import PrefixedModel, PrefixEmbeddings
from vllm.unison.worker.step_audio import StepAudio

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams
    from vllm.unison.messages.guidance import StepGuidance


class StreamModel(HeadModel, Protocol):
    """What the worker needs of a multi-stream model.

    Attributes:
        auxiliary_ids: [max_num_batched_tokens, num_streams - 1] int32, read by the forward.
    """

    auxiliary_ids: torch.Tensor

    def prepare_streams(self) -> None:
        """Called once, when the weights are loaded."""
        ...


@runtime_checkable
class EncodingModel(Protocol):
    """What memory profiling needs of a model that has a text encoder."""

    def encode_longest_text(self) -> None:
        """Take for a moment what encoding may take at most."""
        ...


class StreamWorker:
    """Owns what the worker keeps of multi-stream requests: slots, sampler and audio.

    Args:
        spec: the model's specification.
        model: the model, its weights loaded.
        max_requests: maximum number of rows in a batch.
        max_model_len: maximum number of positions of a request.
        device: the model's.
        is_async: whether a step is launched before the output of the step before is read.
        audio: decodes audio; None if this worker's output does not reach the scheduler, or the
            model has no codec.

    Attributes:
        slots: the requests' state.
    """

    def __init__(
        self,
        spec: SpeechSpec,
        model: StreamModel,
        max_requests: int,
        max_model_len: int,
        device: torch.device,
        is_async: bool,
        audio: StepAudio | None,
    ) -> None:
        self._model = model
        self._states: EncoderStates | None = None
        self._prefixes: PrefixEmbeddings | None = None
        # The host may read device memory directly, so every row's state is known at once.
        self._host_is_device = device.type == "cpu"
        self._states_are_current = self._host_is_device or not is_async
        self.slots = SlotTable(spec.layout, spec.table, max_requests, max_model_len, device)
        if isinstance(model, AttendingModel):
            self._states = EncoderStates(model, self.slots.padding_slot + 1, device)
        if isinstance(model, PrefixedModel):
            self._prefixes = PrefixEmbeddings(model, self.slots.padding_slot + 1, device)
        self._sampler = StreamSampler(
            spec.layout, spec.table, self.slots, keeps_plans=self._host_is_device and not is_async
        )
        self._delays = np.array(spec.layout.delays, np.int64)
        self._batches = GuidedBatchCache(device)
        self._audio = audio
        self._update = StreamUpdate()
        self._guidance: StepGuidance | None = None
        self._request_ids: list[str] = []
        self._sampled: tuple[StepTokens, NDArray[np.bool_]] | None = None

    def begin_step(
        self,
        update: StreamUpdate | None,
        guidance: StepGuidance | None,
        staying: AbstractSet[str],
    ) -> None:
        """Release the slots of all requests that are not among `staying`.

        Args:
            update: the streams of requests that enter the batch.
            guidance: the groups that sample with guidance in this step; None: no group does.
            staying: requests of the last step's batch that stay in it, none of which enters.
        """
        self._update = update or StreamUpdate()
        self._guidance = guidance
        self.slots.release_except(staying)
        if self._prefixes is not None:
            self._prefixes.release_except(staying)
        if self._audio is not None:
            self._audio.begin_step(staying)

    def admit(
        self,
        request_id: str,
        prompt: Sequence[int],
        output: Sequence[int],
        params: SamplingParams,
        block_ids: Sequence[Sequence[int]],
        kv_cache_config: Any,
    ) -> None:
        """Give a request, or a guidance lane, that enters the batch a slot.

        Args:
            request_id: of one of the step's update.
            prompt: [num_prompt] ids of stream 0.
            output: ids that stream 0 has emitted so far.
            params: its sampling parameters.
            block_ids: its blocks, per KV cache group.
            kv_cache_config: the runner's.
        """
        auxiliary_ids = self._update.auxiliary_ids[request_id]
        start_phase = self._update.start_phases.get(request_id)
        replayed = self.slots.admit(request_id, prompt, output, auxiliary_ids, params, start_phase)
        conditioning = self._update.encoder_inputs.get(request_id)
        if self._states is not None:
            assert conditioning is None or isinstance(conditioning, EncoderInput)
            slot = self.slots.slot_of(request_id)
            self._states.admit(slot, conditioning, block_ids, kv_cache_config)
        if self._prefixes is not None:
            assert conditioning is None or isinstance(conditioning, PromptStates)
            self._prefixes.admit(request_id, self.slots.slot_of(request_id), conditioning)
        num_sent = self._update.audio_frames.get(request_id)
        if self._audio is not None and num_sent is not None:
            slot = self.slots.slot_of(request_id)
            self._audio.admit(request_id, slot, prompt, output, auxiliary_ids, replayed, num_sent)
        self.slots.invalidate_rows()

    def set_batch(self, request_ids: list[str]) -> None:
        """Say which request or lane each batch row holds; all are admitted."""
        self._request_ids = request_ids
        self.slots.set_rows(request_ids)
        if self._states is not None:
            self._states.write()
            self._states.set_rows(self.slots.row_slots)
        if self._prefixes is not None:
            self._prefixes.compute()
        if self._audio is not None:
            self._audio.commit_batch()

    def prepare_inputs(self, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """Write what the model's forward reads of a step's tokens besides their ids.

        Args:
            rows: [num_tokens] int32 or int64 batch row of each token.
            positions: [num_tokens] int64 position of each token.
        """
        self.slots.gather_inputs(rows, positions, self._model.auxiliary_ids)
        if self._states is not None:
            self._states.prepare_inputs(rows)
        if self._prefixes is not None:
            self._prefixes.prepare_inputs(self.slots.row_slots, rows, positions)

    def sample(
        self,
        hidden_states: torch.Tensor,
        position: torch.Tensor,
        discard: torch.Tensor | None,
        is_discarded: NDArray[np.bool_],
    ) -> torch.Tensor:
        """Sample the next token of every stream of every group.

        Args:
            hidden_states: [num_rows, hidden_size] at each row's last scheduled token.
            position: [num_rows] integer position of the emitted tokens.
            discard: [num_rows] bool, rows that have not reached their last known token; may be
                None if there are none.
            is_discarded: the same on the host.

        Returns:
            [num_rows, 1] int32 tokens of stream 0.
        """
        if self._prefixes is not None:
            self._prefixes.note_computed(self._request_ids, is_discarded)
        guidance = self._guidance
        guided = unguided = None
        kept = ~is_discarded
        if guidance is not None:
            guided = self._batches.get(guidance.groups, self._request_ids)
            kept[guided.guidance_rows] = False
            unguided = guided.unguided_streams(guidance.frames, self._delays)
        step = self._sample(hidden_states, position, discard, is_discarded, guided, unguided)
        if self._host_is_device:
            slots = self.slots.row_slots_host[kept]
            self.slots.known_state[slots] = step.host[1][1][kept]
        self._sampled = (step, kept)
        return step.tokens[:, :1]

    def _sample(
        self,
        hidden_states: torch.Tensor,
        position: torch.Tensor,
        discard: torch.Tensor | None,
        is_discarded: NDArray[np.bool_],
        guided: GuidedBatch | None,
        unguided: NDArray[np.bool_] | None,
    ) -> StepTokens:
        return self._sampler.step(
            self._model,
            hidden_states,
            position,
            discard if is_discarded.any() else None,
            self._states_are_current,
            None if guided is None else guided.groups,
            unguided,
        )

    def end_step(self, copy_stream: torch.cuda.Stream | None) -> PendingStep | None:
        """Start to bring to the host what the step emitted; None if it sampled nothing.

        Args:
            copy_stream: the CUDA stream that copies beside the model's; None to copy at once.
        """
        if self._sampled is None:
            return None
        (step, kept), self._sampled = self._sampled, None
        if self._audio is not None:
            self._audio.launch()
        return PendingStep(
            step, list(self._request_ids), self.slots.row_slots_host, kept, copy_stream
        )

    def collect(self, pending: PendingStep) -> StreamOutput:
        """What a step emitted, on the host, with the audio that has become ready."""
        tokens, finish, state, segment_start = pending.wait()
        if not self._host_is_device:
            self.slots.known_state[pending.slots[pending.kept]] = state[pending.kept]
        # Rows that are not kept have not finished: 0 is Finish.NOT_FINISHED.
        finish = finish * pending.kept
        output = StreamOutput(tokens, finish, state, segment_start)
        if self._audio is not None:
            self._audio.collect(output, pending, self.slots)
        for row in np.flatnonzero(output.finish == Finish.ERROR).tolist():
            output.errors.setdefault(
                pending.request_ids[row],
                "a stream could not be sampled: its logits are NaN or infinite",
            )
        return output

    def run_heads(self, hidden_states: torch.Tensor) -> None:
        """Multiply both heads for all rows, as the largest step does; for memory profiling.

        And encode the longest text, for a model that has a text encoder.
        """
        self._model.text_logits(hidden_states)
        self._model.audio_logits(hidden_states)
        if isinstance(self._model, EncodingModel):
            self._model.encode_longest_text()


def make_stream_worker(
    spec: SpeechSpec,
    model: StreamModel,
    vllm_config: Any,
    max_requests: int,
    max_model_len: int,
    device: torch.device,
    is_async: bool,
) -> StreamWorker:
    """The stream worker of a model runner whose model has its weights.

    Args:
        vllm_config: the engine's configuration, from which the sizes of audio chunks come.
        spec, model, max_requests, max_model_len, device, is_async: see StreamWorker.
    """
    model.prepare_streams()
    audio = None
    # Only the first rank's output reaches the scheduler.
    if spec.has_codec and get_tensor_model_parallel_rank() == 0:
        policy = ChunkSchedule.from_config(vllm_config.additional_config)
        audio = StepAudio(spec, device, policy, num_slots(max_requests))
    return StreamWorker(spec, model, max_requests, max_model_len, device, is_async, audio)
