# SPDX-License-Identifier: Apache-2.0
"""The tensors of a published Higgs TTS 3 checkpoint, in the engine's names.

The text's embedding and the offset table of the codes are one embedding here. Heads that a
checkpoint may hold are those tables again, or the text's, which is not used. The codec lies in the
same files; its own loader reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from vllm.unison.formats.expected_tensors import ExpectedTensors, expected_tensors

if TYPE_CHECKING:
    from vllm.transformers_utils.configs.higgs3 import Higgs3Config

TEXT_EMBEDDING = "tied.embedding.text_embedding.weight"
CODE_EMBEDDING = "tied.embedding.modality_embeddings.0.embedding.weight"
CODEC = "tied.embedding.modality_embeddings.0.model"
"""Prefix of the codec's tensors, with a dot."""
TEXT_HEAD = "tied.head.text_head.weight"
CODE_HEAD = "tied.head.modality_heads.0.weight"

_BODY, _ENGINE_BODY = "body.", "backbone.model."
_EMBEDDING = "backbone.model.embed_tokens.weight"


def engine_weights(
    weights: Iterable[tuple[str, torch.Tensor]], config: Higgs3Config
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights in the engine's names, as they come.

    Args:
        weights: all tensors of a checkpoint.
        config: of the model.

    Raises:
        ValueError: naming a tensor that is missing, unknown or of a wrong shape.
    """
    own = (pair for pair in weights if not pair[0].startswith(f"{CODEC}."))
    tables: dict[str, torch.Tensor] = {}
    for name, tensor in published_tensors(config).checked(own):
        if name in (TEXT_EMBEDDING, CODE_EMBEDDING):
            tables[name] = tensor
            if len(tables) == 2:
                yield (
                    _EMBEDDING,
                    torch.cat([tables.pop(TEXT_EMBEDDING), tables.pop(CODE_EMBEDDING)]),
                )
        elif name.startswith(_BODY):
            yield _ENGINE_BODY + name.removeprefix(_BODY), tensor


def published_tensors(config: Higgs3Config) -> ExpectedTensors:
    """What the files must hold besides the codec."""
    backbone = expected_tensors(config.backbone_config, {})
    assert backbone is not None
    body = {
        _BODY + name.removeprefix(_ENGINE_BODY): shape
        for name, shape in backbone.shapes.items()
        if name.startswith(_ENGINE_BODY) and name != _EMBEDDING
    }
    text = (int(config.text_config.vocab_size), int(config.text_config.hidden_size))
    codes = (config.num_code_ids, text[1])
    tables = {TEXT_EMBEDDING: text, CODE_EMBEDDING: codes, TEXT_HEAD: text, CODE_HEAD: codes}
    return ExpectedTensors({**body, **tables}, frozenset({TEXT_HEAD, CODE_HEAD}))
