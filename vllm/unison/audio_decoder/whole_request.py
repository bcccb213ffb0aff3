# SPDX-License-Identifier: Apache-2.0
"""The audio of a finished request in one call of the codec."""

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.audio_decoder.codec_stream import CodecStream, codec_stream_for
from vllm.unison.audio_decoder.frames import CodeReader, frames_of_segments
from vllm.unison.codecs.base import Codec
from vllm.unison.messages.streams import AudioOutput
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import Segment


class OfflineDecoder:
    """Decodes finished requests, each in a call of its own.

    So the samples of a request do not depend, in any bit, on what else ends in the same step.

    Args:
        codec: the model's codec.
        layout: its stream layout.
        codec_stream: where the codec runs; default: as befits the codec's device.
    """

    def __init__(
        self, codec: Codec, layout: StreamLayout, codec_stream: CodecStream | None = None
    ) -> None:
        self._codec = codec
        self._codec_stream = codec_stream or codec_stream_for(codec.device)
        self._layout = layout
        self._reader = CodeReader(layout)

    def decode(self, tokens: NDArray[np.int32], segments: tuple[Segment, ...]) -> AudioOutput:
        """Waveform and codes of a request.

        Args:
            tokens: [num_steps, num_streams] ids of the request from position 0 on.
            segments: its finished audio segments, at least one.

        Raises:
            CodeError: if a code lies outside its codebook and the layout has requests fail.
        """
        codes = self._reader.codes(frames_of_segments(self._layout, tokens, segments))
        with self._codec_stream.running():
            samples = self._codec.decode(torch.from_numpy(codes)).cpu()
        return AudioOutput(samples.numpy(), self._codec.sample_rate, codes)
