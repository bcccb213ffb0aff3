# SPDX-License-Identifier: Apache-2.0
"""Contexts against what changes when a frame is changed, in real layers with positive weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.codecs import FourierCodec
from vllm.unison.codecs import Codec
from vllm.unison.codecs.receptive_field import (
    Context,
    Convolution,
    Layer,
    TransposedConvolution,
    receptive_field,
)


def run(layers: list[Layer], signal: torch.Tensor) -> torch.Tensor:
    """[time] through the layers, all weights 1; each output as long as its stride says."""
    hidden = signal[None, None]
    for layer in layers:
        kernel = torch.ones(1, 1, layer.kernel, dtype=signal.dtype)
        length = hidden.shape[-1]
        if isinstance(layer, TransposedConvolution):
            raised = nn.functional.conv_transpose1d(hidden, kernel, stride=layer.stride)
            raised = nn.functional.pad(raised, (0, layer.stride * layer.kernel))
            hidden = raised[..., layer.trimmed : layer.trimmed + length * layer.stride]
            continue
        span = layer.dilation * (layer.kernel - 1)
        left = span // 2 if layer.padding is None else layer.padding
        mode = "reflect" if layer.mirrors else "constant"
        padded = nn.functional.pad(hidden, (left, 0), mode)
        padded = nn.functional.pad(padded, (0, span - left))
        hidden = nn.functional.conv1d(padded, kernel, dilation=layer.dilation)
    return hidden[0, 0]


@st.composite
def decoders(draw: st.DrawFn) -> list[Layer]:
    layers: list[Layer] = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
            padding = draw(st.none() | st.integers(0, dilation * (kernel - 1)))
            layers.append(Convolution(kernel, dilation, padding, draw(st.booleans())))
        else:
            stride = draw(st.integers(1, 3))
            kernel = stride + draw(st.integers(0, 4))
            layers.append(
                TransposedConvolution(kernel, stride, draw(st.integers(0, kernel - stride)))
            )
    return layers


@settings(max_examples=150)
@given(layers=decoders(), inputs_per_frame=st.integers(1, 2))
def test_context_is_what_samples_depend_on_and_no_more(
    layers: list[Layer], inputs_per_frame: int
) -> None:
    per_input = 1
    for layer in layers:
        per_input *= getattr(layer, "stride", 1)
    per_frame = per_input * inputs_per_frame
    context = receptive_field(layers, per_frame, inputs_per_frame)
    frames = 2 * (context.left + context.right) + 2 * context.first + 5
    plain = torch.zeros(frames * inputs_per_frame, dtype=torch.float64)

    def frames_changed_by(frame: int) -> list[int]:
        changed = plain.clone()
        changed[frame * inputs_per_frame : (frame + 1) * inputs_per_frame] = 1
        by_frame = run(layers, changed).view(frames, per_frame).abs().amax(1)
        return by_frame.nonzero().flatten().tolist()

    middle = context.left + context.first + 2
    touched = {frame: frames_changed_by(frame) for frame in range(frames)}
    sources = [frame for frame, outputs in touched.items() if middle in outputs]
    # A kernel that is shorter than its stride is wide leaves holes, never a longer reach.
    assert middle - min(sources) == context.left
    assert max(sources) - middle == context.right
    assert max(frame for frame, outputs in touched.items() if 0 in outputs) + 1 <= context.first
    if not any(isinstance(layer, Convolution) and layer.mirrors for layer in layers):
        assert context.first == context.right + 1


def test_a_mirror_at_the_start_needs_what_it_shows() -> None:
    causal = Convolution(7, padding=6, mirrors=True)
    assert receptive_field([causal], 1) == Context(6, 0, 7)
    # Sample 6, which the second layer mirrors, is one of frame 1.
    assert receptive_field([TransposedConvolution(8, 4), causal], 4).first == 2
    assert receptive_field([Convolution(7, padding=6)], 1) == Context(6, 0, 1)


@pytest.mark.parametrize("bad", [(-1, 0), (0, -1)])
def test_negative_contexts_are_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="left and right must be at least 0"):
        Context(*bad)


def test_the_contexts_of_the_published_architectures(load: Callable[..., Codec]) -> None:
    def contexts(kind: str) -> list[Context]:
        stages = load(kind).decoder_stages()
        assert stages is not None
        return [stage.context for stage in stages]

    assert contexts("dac") == contexts("xcodec") == [Context(10, 10)]
    assert contexts("higgs_audio_v2_tokenizer") == [Context(10, 10)]
    assert contexts("encodec") == [Context(6, 0, 7), Context(0, 0), Context(2, 0)]
    assert contexts("mimi") == [Context(1, 0), Context(0, 0), Context(4, 0)]
    # Nine kernels of 7, and a window that reaches one and a half hops beyond its own.
    assert FourierCodec().decoder_context() == Context(29, 29)


@pytest.mark.parametrize("kind", ["dac", "xcodec", "higgs_audio_v2_tokenizer"])
def test_a_real_decoder_depends_on_its_context_and_no_more(
    kind: str, load: Callable[..., Codec]
) -> None:
    codec: Any = load(kind)
    context = codec.decoder_context()
    frames, middle = 3 * (context.left + context.right), context.left + context.right
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(codec.codebook_size, (frames, codec.num_codebooks), generator=generator)
    hop = codec.samples_per_frame

    def change_in_the_middle(frame: int) -> float:
        changed = codes.clone()
        changed[frame] = (changed[frame] + 1 + codec.codebook_size // 2) % codec.codebook_size
        difference = codec.decode(changed) - codec.decode(codes)
        return float(difference[middle * hop : (middle + 1) * hop].abs().max())

    codec.model.double()

    def decode_frames(codes: torch.Tensor) -> torch.Tensor:
        """As the codec's own, but in float64."""
        samples = codec._decode(codes)[:, : frames * hop]
        missing = frames * hop - samples.shape[1]
        return torch.nn.functional.pad(samples, (0, missing)).unflatten(1, (frames, hop))

    codec._decode_frames = decode_frames
    try:
        assert change_in_the_middle(middle - context.left) > 0
        assert change_in_the_middle(middle + context.right) > 0
        assert change_in_the_middle(middle - context.left - 1) == 0
        assert change_in_the_middle(middle + context.right + 1) == 0
    finally:
        codec.model.float()
        del codec._decode_frames
