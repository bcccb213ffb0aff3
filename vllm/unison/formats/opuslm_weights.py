# SPDX-License-Identifier: Apache-2.0
"""The tensors of a published OpusLM under the names of the SpeechLM format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from vllm.unison.formats.espnet_checkpoint import EspnetCheckpoint
from vllm.unison.formats.expected_tensors import ExpectedTensors, Shape

WEIGHTS_FILE = "weights.bin"
"""Name in a made folder of the link to the published file; upstream looks for such names."""

HEAD_OFFSETS = "head_offsets"

_HEAD_OFFSETS = "corelm.head_emb.weight"
_BACKBONE = "corelm.decoders."
_NAMES: Mapping[str, str] = {
    "corelm.emb.weight": "backbone.model.embed_tokens.weight",
    "corelm.lm_head.weight": "backbone.lm_head.weight",
    _HEAD_OFFSETS: HEAD_OFFSETS,
}
_OF_TRAINING = ("criterion.", "reflm.")
"""The loss, which holds the head once more, and the model that a preference was learned against."""

Tensors = Iterator[tuple[str, torch.Tensor]]


def read_opuslm_weights(file: Path, expected: Mapping[str, Shape]) -> Tensors:
    """All tensors of a file, one after another, as they are stored.

    Args:
        file: as ESPnet saves it.
        expected: shapes by name in the SpeechLM format, head offsets included.

    Raises:
        ValueError: if the file does not hold weights, or naming a tensor, as it is called in the
            file, that is missing, unknown or has another shape than config.yaml says.
    """
    published = {_published(name): shape for name, shape in expected.items()}
    checkpoint = EspnetCheckpoint(file)
    rows = expected[HEAD_OFFSETS][0]
    offsets = checkpoint.tensors.get(_HEAD_OFFSETS)
    # There is room for more streams than a model has.
    if offsets is not None and offsets.ndim == 2 and offsets.shape[0] > rows:
        published[_HEAD_OFFSETS] = tuple(offsets.shape)
    tensors = ExpectedTensors(published).checked(
        (name, tensor) for name, tensor in checkpoint.in_turn() if not name.startswith(_OF_TRAINING)
    )
    for name, tensor in tensors:
        yield _renamed(name), tensor[:rows] if name == _HEAD_OFFSETS else tensor


def _renamed(name: str) -> str:
    return _NAMES.get(name) or "backbone." + name.removeprefix(_BACKBONE)


def _published(name: str) -> str:
    for published, own in _NAMES.items():
        if name == own:
            return published
    return _BACKBONE + name.removeprefix("backbone.")
