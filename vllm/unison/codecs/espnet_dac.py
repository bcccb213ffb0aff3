# SPDX-License-Identifier: Apache-2.0
"""ESPnet's DAC: transformers' EnCodec with another activation, and projected codebooks."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from vllm.unison.codecs.transformers_codecs import EncodecCodec
from vllm.unison.formats.checkpoint_part import CheckpointPart
from vllm.unison.formats.espnet_dac import PREFIX, read_espnet_dac
from vllm.unison.formats.expected_tensors import ExpectedTensors, listed

ALPHA = ".alpha"
"""End of the names of the frequencies that newer codecs have learned."""

WEIGHTS_FILE = "weights.bin"
"""Name in a made folder of the link to the published file."""


class Snake(nn.Module):
    """x + sin(f x)^2 / f, DAC's activation (arXiv 2306.06546, section 3.1).

    Args:
        frequency: of one element; None is 1, which it is where the model did not learn it.
    """

    def __init__(self, frequency: torch.Tensor | None = None) -> None:
        super().__init__()
        self.frequency = None if frequency is None else frequency.reshape(())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of any shape."""
        if self.frequency is None:
            return hidden + torch.sin(hidden).square()
        frequency = self.frequency.to(hidden)
        return hidden + torch.sin(frequency * hidden).square() / (frequency + 1e-9)


class ProjectedQuantization(nn.Module):
    """A layer of a residual quantizer that quantizes a projection of its input.

    Args:
        codebook: transformers' codebook, of the projection's size.
        tensors: `project_in` and `project_out`, each `.weight` and `.bias`.
    """

    def __init__(self, codebook: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.codebook = codebook
        for name in ("project_in", "project_out"):
            weight = tensors[f"{name}.weight"]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data, layer.bias.data = weight, tensors[f"{name}.bias"]
            setattr(self, name, layer)

    def encode(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, size, num_frames] to int64 [batch, num_frames]."""
        codes: torch.Tensor = self.codebook.encode(self.project_in(hidden.transpose(1, 2)))
        return codes

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [batch, num_frames] to [batch, size, num_frames]."""
        hidden: torch.Tensor = self.project_out(self.codebook.decode(codes)).transpose(1, 2)
        return hidden


class EspnetDacCodec(EncodecCodec):
    """ESPnet's DAC, from a folder that was made for it: config.json, and a link to the weights."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        num_codebooks: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> EspnetDacCodec:
        """Load from a folder; see ``registry.load_codec``.

        Raises:
            ValueError: naming a tensor that is missing, unknown or of a wrong shape.
        """
        folder = Path(name_or_path)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        activation, quantized = config.pop("activation"), config.pop("quantized_size")
        tensors = read_espnet_dac(folder / WEIGHTS_FILE)
        projections: dict[str, torch.Tensor] = {}
        if quantized != config["hidden_size"]:
            projections = {name: t for name, t in tensors.items() if ".project_" in name}
        frequencies = {name: tensors.pop(name) for name in list(tensors) if name.endswith(ALPHA)}
        part = CheckpointPart(
            name_or_path,
            PREFIX,
            config | {"model_type": "encodec"},
            {name: t.clone() for name, t in tensors.items() if name not in projections},
        )
        codec = cls.from_part(part, num_codebooks=num_codebooks, device=device, dtype=dtype)
        if projections:
            codec._project(projections, config["hidden_size"], quantized)
        if activation == "Snake":
            _replace_activations(codec.model, "", frequencies)
        if frequencies:
            raise ValueError(
                f"codec {name_or_path!r} holds what it lacks: {listed([*frequencies])}"
            )
        return codec

    def _project(self, tensors: dict[str, torch.Tensor], hidden: int, quantized: int) -> None:
        layers = self.model.quantizer.layers
        shapes: dict[str, tuple[int, ...]] = {}
        for index in range(len(layers)):
            for name, sizes in (("in", (quantized, hidden)), ("out", (hidden, quantized))):
                stem = f"quantizer.layers.{index}.project_{name}"
                shapes |= {f"{stem}.weight": sizes, f"{stem}.bias": sizes[:1]}
        checked = dict(ExpectedTensors(shapes).checked(tensors.items()))
        for index, layer in enumerate(layers):
            stem = f"quantizer.layers.{index}."
            own = {
                name.removeprefix(stem): tensor.clone()
                for name, tensor in checked.items()
                if name.startswith(stem)
            }
            projected = ProjectedQuantization(layer.codebook, own).requires_grad_(False)
            layers[index] = projected.to(self.device, self.model.dtype)


def _replace_activations(
    module: nn.Module, prefix: str, frequencies: dict[str, torch.Tensor]
) -> None:
    """Put DAC's activation in the place of EnCodec's, everywhere; takes what it has learned."""
    for name, child in module.named_children():
        where = f"{prefix}{name}"
        if isinstance(child, nn.ELU):
            setattr(module, name, Snake(frequencies.pop(where + ALPHA, None)))
        else:
            _replace_activations(child, f"{where}.", frequencies)
