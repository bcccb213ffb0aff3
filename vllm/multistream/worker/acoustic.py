# SPDX-License-Identifier: Apache-2.0
"""From the tokens of a finished request to its waveform."""

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.multistream.codecs.base import Codec
from vllm.multistream.delay import deinterleave
from vllm.multistream.layout import StreamLayout
from vllm.multistream.messages import AudioOutput
from vllm.multistream.phases import Segment


def frames_of_segments(
    layout: StreamLayout, tokens: NDArray[np.int32], segments: tuple[Segment, ...]
) -> NDArray[np.int32]:
    """The generated frames of a request's audio segments, one after the other.

    Args:
        layout: the stream layout.
        tokens: [num_steps, num_streams] ids of the request from position 0 on.
        segments: its finished segments.

    Returns:
        [num_frames, num_streams] int32 ids.
    """
    frames = [np.empty((0, layout.num_streams), np.int32)]
    for segment in segments:
        stop = segment.start + segment.num_frames + layout.max_delay
        whole = deinterleave(tokens[segment.start : stop], layout.delays, segment.num_frames)
        frames.append(whole[segment.first_generated :])
    return np.concatenate(frames)


def codes_of_frames(layout: StreamLayout, frames: NDArray[np.int32]) -> NDArray[np.int32]:
    """The codec's codes in frames: [num_frames, num_codebooks] int32."""
    streams = list(layout.codebook_streams)
    begins = np.array([layout.slices[stream][0] for stream in streams], np.int32)
    return np.ascontiguousarray(frames[:, streams] - begins)


class AcousticDecoder:
    """Owns the codec and decodes finished requests.

    Each request is decoded in a call of its own, so that its samples do not depend on what else
    ends in the same step.

    Args:
        codec: the model's codec.
        layout: its stream layout.
    """

    def __init__(self, codec: Codec, layout: StreamLayout) -> None:
        self._codec = codec
        self._layout = layout

    def decode(self, tokens: NDArray[np.int32], segments: tuple[Segment, ...]) -> AudioOutput:
        """Waveform and codes of a request.

        Args:
            tokens: [num_steps, num_streams] ids of the request from position 0 on.
            segments: its finished audio segments, at least one.
        """
        codes = codes_of_frames(self._layout, frames_of_segments(self._layout, tokens, segments))
        samples = self._codec.decode(torch.from_numpy(codes))
        return AudioOutput(samples.cpu().numpy(), self._codec.sample_rate, codes)
