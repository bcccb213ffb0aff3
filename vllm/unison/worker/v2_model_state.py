# SPDX-License-Identifier: Apache-2.0
"""What upstream's V2 model runner keeps of a multi-stream model.

`ModelState` is that runner's extension point: the model names its class, and the runner tells it
which requests come and go, lets it prepare the forward's inputs, and takes its sampler. This one
calls a StreamWorker with what it is told; what a ModelState is not told (the step's scheduler
output, when the output is made) comes through `v2_runner`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vllm.unison.messages.streams import StreamUpdate
from vllm.unison.model.spec import multistream_spec
from vllm.unison.sampler.upload import upload
from vllm.unison.worker.stream_worker import StreamWorker, make_stream_worker
from vllm.unison.worker.wrapped_sampler import WrappedSampler
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.output import SamplerOutput

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import NewRequestData


class StreamModelState(DefaultModelState):
    """Drives a StreamWorker on the V2 runner.

    Args:
        vllm_config, model, encoder_cache, device: the runner's.

    Attributes:
        worker: the stream worker.
    """

    def __init__(
        self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        spec = multistream_spec(vllm_config.model_config)
        assert spec is not None
        self._pads = np.array(spec.layout.pad_token_ids[1:], np.int32)
        self.worker: StreamWorker = make_stream_worker(
            spec,
            model,
            vllm_config,
            self.max_num_reqs,
            self.max_model_len,
            device,
            vllm_config.scheduler_config.async_scheduling,
        )
        self._is_step = False
        self._kv_cache_config: Any = None
        self._rows = torch.arange(self.max_num_reqs, dtype=torch.int64, device=device)
        self._ones = torch.ones(self.max_num_reqs, dtype=torch.int32, device=device)
        self._zeros = torch.zeros(self.max_num_reqs, dtype=torch.int32, device=device)

    def begin_step(self, scheduler_output: Any, kv_cache_config: Any) -> None:
        """Note a step's streams; called before the runner learns which requests come and go."""
        self._kv_cache_config = kv_cache_config
        update, new = scheduler_output.streams, scheduler_output.scheduled_new_reqs
        if new and update is None:
            # Requests of upstream's own warm-up, which no front end has given streams.
            update = StreamUpdate({r.req_id: self._padded(r) for r in new})
        entering = set() if update is None else update.auxiliary_ids.keys()
        preempted = scheduler_output.preempted_req_ids or set()
        gone = scheduler_output.finished_req_ids | preempted | entering
        staying = self.worker.slots.request_ids() - gone
        self.worker.begin_step(update, scheduler_output.guidance, staying)
        # The runner also makes dummy runs, of which no scheduler knows.
        self._is_step = scheduler_output.total_num_scheduled_tokens > 0
        if not self._is_step:
            self.worker.set_batch([])

    def _padded(self, new: NewRequestData) -> np.ndarray:
        """Auxiliary ids of a request that has none: [num_prefill, num_streams - 1] pads."""
        assert new.prefill_token_ids is not None
        return np.tile(self._pads, (len(new.prefill_token_ids), 1))

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """A request enters the runner, with all tokens that it has."""
        super().add_request(req_index, new_req_data)
        known, params = new_req_data.prefill_token_ids, new_req_data.sampling_params
        assert known is not None and params is not None
        if params.seed is None:
            # Admission gives every request a seed; this is one of upstream's warm-up.
            params = params.clone()
            params.seed = 0
        prompt, output = known[: new_req_data.prompt_len], known[new_req_data.prompt_len :]
        self.worker.admit(
            new_req_data.req_id,
            prompt,
            output,
            params,
            new_req_data.block_ids,
            self._kv_cache_config,
        )

    def prepare_attn(self, input_batch: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Metadata of attention, for which the rows' encoder states must be known.

        The runner asks for it in every step, once, before the inputs.
        """
        if self._is_step:
            self.worker.set_batch(input_batch.req_ids)
        attention: dict[str, Any] = super().prepare_attn(input_batch, *arguments, **options)
        return attention

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Write the auxiliary ids of the step's tokens where the forward reads them.

        They lie outside the returned inputs, in a buffer of the model's, so that CUDA graphs of the
        forward read them where they are written.
        """
        if self._is_step:
            num_rows, num_tokens = input_batch.num_reqs, input_batch.num_tokens
            rows = self._rows[:num_rows]
            if num_tokens > num_rows:
                lengths = input_batch.query_start_loc[: num_rows + 1].diff()
                rows = torch.repeat_interleave(rows, lengths, output_size=num_tokens)
            self.worker.prepare_inputs(rows, input_batch.positions[:num_tokens])
        return super().prepare_inputs(input_batch, req_states)

    def custom_sampler(self, sampler: Any) -> tuple[Any, None]:
        """The sampler of all streams."""
        return WrappedSampler(sampler, self._sample), None

    def _sample(
        self, _sampler: Any, hidden_states: torch.Tensor, input_batch: Any
    ) -> SamplerOutput:
        """Sample all streams of the rows; the model's compute_logits hands hidden states on."""
        num_rows = input_batch.num_reqs
        sampled, rejected = self._ones[:num_rows], self._zeros[:num_rows]
        if not self._is_step:
            # The dummy run of memory profiling, in which there is no request.
            self.worker.run_heads(hidden_states)
            tokens = torch.zeros((num_rows, 1), dtype=torch.int64, device=self.device)
            return SamplerOutput(tokens, None, None, sampled, rejected)
        # Exact, since nothing is speculated.
        lengths = input_batch.seq_lens_cpu_upper_bound.numpy()[:num_rows]
        is_discarded = lengths < input_batch.prefill_len_np
        discard = None
        if is_discarded.any():
            discard = upload(is_discarded, self.device)
            sampled = (~discard).to(torch.int32)
        tokens = self.worker.sample(
            hidden_states, input_batch.seq_lens[:num_rows], discard, is_discarded
        )
        return SamplerOutput(tokens.long(), None, None, sampled, rejected)

    def end_step(self) -> None:
        """The step has been launched; what the runner does until the next is a dummy run."""
        self._is_step = False
