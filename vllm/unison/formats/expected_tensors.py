# SPDX-License-Identifier: Apache-2.0
"""What tensors a checkpoint has to hold, and that it holds them and no others.

Upstream's loaders let much pass: a weight that is missing stays as it happened to be in memory, a
weight that is too long is cut, and some names that nobody knows are skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BACKBONE = "backbone."
"""Prefix of the backbone's tensors in a checkpoint."""

_COMPUTED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Ends of names that old checkpoints hold, of what is computed and not learned."""

_MAX_NAMED = 5
"""Tensors that an error names; it counts the rest."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ExpectedTensors:
    """The tensors of a checkpoint.

    Attributes:
        shapes: by name.
        optional: names that may be missing, since another tensor stands for them.
        settings: the file that says the shapes, for errors.
    """

    shapes: Mapping[str, Shape]
    optional: frozenset[str] = frozenset()
    settings: str = "config.json"

    def checked(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights as they come; call it for all of a checkpoint at once.

        Raises:
            ValueError: naming a tensor that is unknown or has a wrong shape, when it comes, or
                those that are missing, at the end.
        """
        missing = dict.fromkeys(self.shapes)
        for name, tensor in weights:
            if name.endswith(_COMPUTED):
                continue
            shape = self.shapes.get(name)
            if shape is None:
                raise ValueError(f"the checkpoint holds a tensor that the model lacks: {name!r}")
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"the checkpoint's tensor {name!r} must have shape {list(shape)}, as "
                    f"{self.settings} says, not {list(tensor.shape)}"
                )
            missing.pop(name, None)
            yield name, tensor
        if lacking := [name for name in missing if name not in self.optional]:
            raise ValueError(f"the checkpoint lacks {listed(lacking)}")


def listed(names: list[str]) -> str:
    """Names of tensors for an error, a few of them if there are many."""
    more = len(names) - _MAX_NAMED
    rest = f" and {more} more" if more > 0 else ""
    kind = "the tensor" if len(names) == 1 else f"{len(names)} tensors:"
    return f"{kind} {', '.join(map(repr, names[:_MAX_NAMED]))}{rest}"


def expected_tensors(
    backbone_config: PreTrainedConfig, others: Mapping[str, Shape]
) -> ExpectedTensors | None:
    """The tensors of a SpeechLM checkpoint: those that transformers writes of the backbone.

    Args:
        backbone_config: the backbone's configuration.
        others: shapes by name of what lies beside the backbone.

    Returns:
        None if transformers has no model of the configuration's architecture to ask.
    """
    from transformers import AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(backbone_config)
    except ValueError:
        return None
    if type(model).__name__ not in (backbone_config.architectures or ()):
        return None
    weights = revert_weight_conversion(model, model.state_dict())
    shapes = {BACKBONE + name: tuple(weight.shape) for name, weight in weights.items()}
    tied = frozenset(BACKBONE + name for name in model.all_tied_weights_keys)
    return ExpectedTensors({**shapes, **others}, tied)
