# SPDX-License-Identifier: Apache-2.0
"""The tensors of a Bagpiper model, which ESPnet names after the modules of `ParallelLLM`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vllm.unison.formats.bagpiper_config import CODEC_PART
from vllm.unison.formats.espnet_checkpoint import EspnetCheckpoint
from vllm.unison.formats.expected_tensors import BACKBONE, ExpectedTensors, Shape, expected_tensors

WEIGHTS_FILE = "model.pt"
"""The name under which a made folder links to the published file."""

HEAD_OFFSETS = "stream_emb.weight"
CODEC = f"{CODEC_PART}."
AUDIO_ENCODER = "multimodal_io_dict.continuous_audio.model.audio_tower."
ADAPTOR = "adaptor.continuous_audio."

_OF_LOSS = "vocab_weight"
"""Weights of ids in the training loss, which files hold beside the model's tensors."""


def expected_bagpiper_tensors(config: Any) -> ExpectedTensors:
    """Names and shapes of a model's tensors.

    Args:
        config: a BagpiperConfig.
    """
    backbone = expected_tensors(config.backbone_config, {})
    assert backbone is not None
    hidden = config.backbone_config.hidden_size
    shapes: dict[str, Shape] = {
        name.removeprefix(BACKBONE): shape for name, shape in backbone.shapes.items()
    }
    shapes[HEAD_OFFSETS] = (config.num_codebooks, hidden)
    shapes |= _shapes_of_part(CODEC, getattr(config, CODEC_PART))
    if config.audio_encoder_config is not None:
        encoder = config.audio_encoder_config
        shapes |= _shapes_of_part(AUDIO_ENCODER, encoder)
        shapes[f"{ADAPTOR}weight"] = (hidden, encoder["output_dim"])
        shapes[f"{ADAPTOR}bias"] = (hidden,)
    optional = frozenset(name.removeprefix(BACKBONE) for name in backbone.optional)
    return ExpectedTensors(shapes, optional)


def read_bagpiper_weights(folder: Path, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a model under their published names, as they are stored, one in memory.

    Raises:
        ValueError: naming the file if it holds no weights, or a tensor that is missing, unknown or
            has another shape than the configurations say.
    """
    checkpoint = EspnetCheckpoint(folder / WEIGHTS_FILE)
    expected = expected_bagpiper_tensors(config)
    yield from expected.checked(
        (name, tensor) for name, tensor in checkpoint.in_turn() if name != _OF_LOSS
    )


def _shapes_of_part(prefix: str, config: dict[str, Any]) -> dict[str, Shape]:
    """Shapes of a part that transformers has a class for."""
    from transformers import XcodecConfig, XcodecModel
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
        Qwen3OmniMoeAudioEncoderConfig,
    )
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

    with torch.device("meta"):
        if prefix == CODEC:
            part: Any = XcodecModel(XcodecConfig.from_dict(config))
        else:
            part = Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig.from_dict(config))
    return {f"{prefix}{name}": tuple(tensor.shape) for name, tensor in part.state_dict().items()}
