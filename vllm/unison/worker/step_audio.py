# SPDX-License-Identifier: Apache-2.0
"""The audio of a step's requests: in chunks while it is made, or whole when a request has ended."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.logger import init_logger
from vllm.unison.audio_decoder.chunk_schedule import ChunkSchedule
from vllm.unison.audio_decoder.executor import Admission, AudioExecutor
from vllm.unison.audio_decoder.pipeline import check_stages
from vllm.unison.audio_decoder.whole_request import OfflineDecoder
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.messages.streams import StreamOutput
from vllm.unison.model.phases import Finish, Replay, replay
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.sampler.slot_table import SlotTable, stack_streams
from vllm.unison.worker.pending_step import PendingStep

logger = init_logger(__name__)


class StepAudio:
    """Decodes what the steps of a worker emit.

    Args:
        spec: the model's specification, with a codec.
        device: the codec's.
        policy: sizes of chunks.
        num_slots: slots that requests may hold.

    Attributes:
        executor: decodes streamed audio; None if the codec cannot decode in parts.
    """

    def __init__(
        self, spec: SpeechSpec, device: torch.device, policy: ChunkSchedule, num_slots: int
    ) -> None:
        self._spec = spec
        codec = codec_of(spec, device)
        self._decoder = OfflineDecoder(codec, spec.layout)
        self.executor: AudioExecutor | None = None
        if codec.decoder_stages() is not None:
            check_stages(codec)
            self.executor = AudioExecutor(codec, spec.layout, spec.table, policy, num_slots)
        self._staying: AbstractSet[str] = frozenset()
        self._admissions: list[Admission] = []

    def begin_step(self, staying: AbstractSet[str]) -> None:
        """Note which requests stay in the batch."""
        self._staying, self._admissions = staying, []

    def admit(
        self,
        request_id: str,
        slot: int,
        prompt: Sequence[int],
        output: Sequence[int],
        auxiliary_ids: NDArray[np.int32],
        replayed: Replay,
        num_sent: int,
    ) -> None:
        """Admit a request that enters the batch and whose audio is streamed.

        Args:
            request_id: of the request.
            slot: that it holds.
            prompt, output: ids of stream 0.
            auxiliary_ids: [n, num_streams - 1] ids of the others, n at least as many as both.
            replayed: what its tokens say.
            num_sent: frames whose samples have reached the scheduler.
        """
        tokens = stack_streams(prompt, output, auxiliary_ids)[: len(prompt) + len(output)]
        self._admissions.append(
            Admission(request_id, slot, tokens, len(prompt), replayed, num_sent)
        )

    def commit_batch(self) -> None:
        """All requests of the step's batch are admitted."""
        if self.executor is not None:
            self.executor.change_batch(set(self._staying), self._admissions)
        self._admissions = []

    def launch(self) -> None:
        """A step has been launched; `collect` will be called with its output."""
        if self.executor is not None:
            self.executor.launch()

    def collect(self, output: StreamOutput, pending: PendingStep, slots: SlotTable) -> None:
        """Add the audio that has become ready, and the errors, to a step's output.

        Args:
            output: what the step emitted; completed in place.
            pending: the step's rows.
            slots: where the history of ended requests is read.
        """
        ended = np.flatnonzero(output.finish).tolist()
        streamed: set[int] = set()
        if self.executor is not None:
            # Asked before the step, with whose end the executor may forget them.
            streamed = {row for row in ended if self.executor.holds(pending.request_ids[row])}
            audio = self.executor.step(
                pending.slots,
                pending.kept,
                output.tokens,
                output.state,
                output.segment_start,
                output.finish,
            )
            output.audio, output.errors = audio.audio, audio.errors
            failed = [pending.request_ids.index(request_id) for request_id in audio.errors]
            output.finish[failed] = Finish.ERROR
        for row in ended:
            if output.finish[row] != Finish.ERROR and row not in streamed:
                self._decode_whole(output, row, int(pending.slots[row]), slots)

    def _decode_whole(self, output: StreamOutput, row: int, slot: int, slots: SlotTable) -> None:
        """Decode the audio of a request that has ended and is not streamed."""
        record = slots.record(slot)
        if record.is_decoded:
            # With asynchronous scheduling an ended request is in one more step.
            return
        record.is_decoded = True
        tokens: NDArray[Any] = slots.history[slot, : slots.max_model_len].cpu().numpy()
        prompt = tokens[: record.num_prompt_tokens, 0].tolist()
        emitted = tokens[record.num_prompt_tokens :]
        ended = replay(
            self._spec.table,
            prompt,
            emitted,
            record.limit,
            until_done=True,
            start_phase=record.start_phase,
        )
        if not ended.segments:
            return
        try:
            output.audio[record.request_id] = self._decoder.decode(tokens, ended.segments)
        except Exception as error:
            logger.exception("The codec failed on request %s.", record.request_id)
            output.finish[row] = Finish.ERROR
            output.errors[record.request_id] = f"the codec failed: {error}"
