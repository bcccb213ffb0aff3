# SPDX-License-Identifier: Apache-2.0
"""Runs the stages of a decoder for many requests at once, and checks them when they are loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vllm.logger import init_logger
from vllm.unison.audio_decoder.codec_stream import CodecStream, codec_stream_for
from vllm.unison.audio_decoder.decode_state import RequestDecodeState, StageState
from vllm.unison.audio_decoder.windows import frames_needed, stage_targets
from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.receptive_field import Context
from vllm.unison.codecs.stages import DecoderStage, StateStage

logger = init_logger(__name__)

MAX_ROWS = 64
"""Most requests in one call of the codec, which bounds the memory of its activations."""

TOLERANCE = 1e-5
"""Largest difference between streamed samples and those of one call, full scale being 1."""


class StagePipeline:
    """The stages of a codec's decoder.

    Requests are run stage by stage; in each stage, those whose inputs are equally long share a
    call. A request whose call fails gets an error; the others of the call are run again.

    Args:
        stages: of the decoder.
        codec_stream: where they run.

    Attributes:
        contexts: of the stages.
        has_state: per stage whether it carries a state.
    """

    def __init__(self, stages: Sequence[DecoderStage], codec_stream: CodecStream) -> None:
        self._stages = stages
        self._codec_stream = codec_stream
        self.contexts: list[Context] = [stage.context for stage in stages]
        self.has_state = [isinstance(stage, StateStage) for stage in stages]

    def decode(self, todo: Sequence[tuple[RequestDecodeState, Sequence[int]]]) -> None:
        """Decode requests up to some frame counts each, one after the other.

        Samples and errors end up in the streams. Called within `running` of the codec stream.
        """
        for piece in range(max(len(stops) for _, stops in todo)):
            self._decode_piece(
                [
                    (stream, stops[piece])
                    for stream, stops in todo
                    if piece < len(stops) and stream.error is None
                ]
            )

    def _decode_piece(self, todo: Sequence[tuple[RequestDecodeState, int]]) -> None:
        targets = {
            id(stream): stage_targets(self.contexts, stop, stream.num_frames)
            for stream, stop in todo
        }
        for number in range(len(self._stages)):
            shapes: dict[int, list[tuple[RequestDecodeState, int]]] = defaultdict(list)
            for stream, _ in todo:
                stage = stream.stages[number]
                target = targets[id(stream)][number]
                if stream.error is None and target > stage.num_done:
                    shapes[self._input_length(number, stage, target)].append((stream, target))
            for group in shapes.values():
                for first in range(0, len(group), MAX_ROWS):
                    self._run_stage(number, group[first : first + MAX_ROWS])

    def _input_length(self, number: int, stage: StageState, target: int) -> int:
        if self.has_state[number]:
            return target - stage.num_done
        window = stage.window(target)
        return window.end - window.begin

    def _run_stage(self, number: int, group: Sequence[tuple[RequestDecodeState, int]]) -> None:
        """Run a stage for requests whose inputs are equally long, up to their targets."""
        try:
            outputs, states = self._call(number, group)
        except Exception as error:
            if len(group) > 1:
                # One of them may be to blame for all.
                for one in group:
                    self._run_stage(number, [one])
                return
            stream = group[0][0]
            logger.exception("The codec failed on request %s.", stream.request_id)
            stream.error = f"the codec failed: {error}"
            return
        for (stream, target), output, state in zip(group, outputs, states, strict=True):
            stage = stream.stages[number]
            stage.state = state
            stage.finish(target)
            if number + 1 < len(self._stages):
                # A copy, so that one row does not keep the whole batch in memory.
                stream.stages[number + 1].feed(output.clone())
            else:
                stream.samples.append(output)
                stream.num_emitted = target

    def _call(
        self, number: int, group: Sequence[tuple[RequestDecodeState, int]]
    ) -> tuple[list[torch.Tensor], list[Any]]:
        stage = self._stages[number]
        progress = [stream.stages[number] for stream, _ in group]
        targets = [target for _, target in group]
        if isinstance(stage, StateStage):
            inputs = [p.inputs(p.num_done, t) for p, t in zip(progress, targets, strict=True)]
            batch = self._batch(number, inputs)
            outputs, states = stage.step(batch, [p.state for p in progress])
            return list(outputs), states
        windows = [p.window(t) for p, t in zip(progress, targets, strict=True)]
        inputs = [p.inputs(w.begin, w.end) for p, w in zip(progress, windows, strict=True)]
        outputs = stage.apply(self._batch(number, inputs))
        new = [
            output[w.skip : w.skip + w.count] for output, w in zip(outputs, windows, strict=True)
        ]
        return new, [None] * len(group)

    def _batch(self, number: int, inputs: list[torch.Tensor]) -> torch.Tensor:
        batch = torch.stack(inputs)
        return self._codec_stream.to_device(batch) if number == 0 else batch


def check_stages(codec: Codec) -> None:
    """Check a codec's stages on random codes.

    The samples of a frame must not change in any bit when frames beyond its context do, and samples
    decoded in parts must be those of one call, up to TOLERANCE.

    Raises:
        ValueError: if not. On devices other than the CPU, whose kernels may round in other ways
            from shape to shape, a warning says what differs, and by how much.
    """
    stages = codec.decoder_stages()
    if stages is None:
        return
    codec_stream = codec_stream_for(codec.device)
    pipeline = StagePipeline(stages, codec_stream)
    # Long enough for a window with all of its context, and something beyond, in the middle.
    contexts = pipeline.contexts
    num_frames = sum(c.left + c.right for c in contexts) + frames_needed(contexts, 4)
    generator = torch.Generator().manual_seed(0)
    shape = (num_frames, codec.num_codebooks)
    codes = torch.randint(codec.codebook_size, shape, generator=generator)
    none = np.empty((0, codec.num_codebooks), np.int32)
    stream = RequestDecodeState("check", contexts, pipeline.has_state, none, 0)
    stream.feed(codes.to(torch.int32).numpy())
    with codec_stream.running():
        whole = codec.decode(codes)
        beyond = _beyond_context(stages, codes[None].to(codec.device))
        pipeline.decode([(stream, [*range(3, num_frames, 3), num_frames])])
        if stream.error is not None:
            raise ValueError(f"codec: its decoder fails in parts: {stream.error}")
        largest = float((torch.cat(stream.samples).flatten(0, 1) - whole).abs().max())
    problems = []
    if beyond is not None:
        problems.append(f"samples depend on frames beyond {beyond}")
    if largest > TOLERANCE:
        problems.append(f"samples decoded in parts differ by {largest:.2g} from those of one call")
    if not problems:
        return
    if codec.device.type == "cpu":
        raise ValueError(f"codec: {', '.join(problems)}")
    logger.warning("codec: %s", ", ".join(problems))


def _beyond_context(stages: Sequence[DecoderStage], codes: torch.Tensor) -> Context | None:
    """The first context beyond which a stage looks, tried at a frame in the middle."""
    inputs = codes
    for stage in stages:
        if isinstance(stage, StateStage):
            inputs, _ = stage.step(inputs, [None])
            continue
        context, outputs = stage.context, stage.apply(inputs)
        middle = (inputs.shape[1] + context.left - context.right) // 2
        begin, end = middle - context.left, middle + context.right + 1
        # What lies beyond is turned around, so that it is as plausible as before.
        changed = torch.cat(
            [inputs[:, :begin].flip(1), inputs[:, begin:end], inputs[:, end:].flip(1)], dim=1
        )
        changed[:, begin - 1], changed[:, end] = inputs[:, end], inputs[:, begin - 1]
        if not torch.equal(stage.apply(changed)[:, middle], outputs[:, middle]):
            return context
        inputs = outputs
    return None
