# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that does not hold exactly what its config.json says is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.guidance.conftest import runner_of
from tests.engine.streams.conftest import open_engine
from vllm.config import set_current_vllm_config
from vllm.unison.testing.random_checkpoint import write_random_speech_lm

ATTENTION = "backbone.model.layers.0.self_attn"
Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Upstream fuses q, k and v, and does not see that one of them was never there.
        (
            lambda weights: weights.pop(f"{ATTENTION}.v_proj.weight"),
            rf"lacks the tensor '{ATTENTION}.v_proj.weight'",
        ),
        (lambda weights: weights.pop("head_offsets"), "lacks the tensor 'head_offsets'"),
        (
            lambda weights: weights.update({f"{ATTENTION}.v_proj.bias": torch.ones(32)}),
            rf"holds a tensor that the model lacks: '{ATTENTION}.v_proj.bias'",
        ),
        # Upstream takes the first rows of one that is too long.
        (
            lambda weights: weights.update({f"{ATTENTION}.k_proj.weight": torch.ones(64, 64)}),
            rf"'{ATTENTION}.k_proj.weight' must have shape \[32, 64\], .* not \[64, 64\]",
        ),
    ],
)
def test_weights(change: Callable[[Weights], None], message: str, tmp_path: Path) -> None:
    folder = write_random_speech_lm(tmp_path, num_streams=2, codec=None)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message), open_engine(folder):
        pass


def test_a_key_of_config_json(tmp_path: Path) -> None:
    folder = write_random_speech_lm(tmp_path, num_streams=2, codec=None)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"guidence": None}))
    with pytest.raises(ValueError, match=r"unknown keys \['guidence'\]"), open_engine(folder):
        pass


def test_everything_is_made_on_the_models_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's tensors are made on a default device, which the meta device stands for here."""
    folder = write_random_speech_lm(tmp_path, num_streams=3, codec=None)
    with open_engine(folder) as llm:
        runner = runner_of(llm)
        config = runner.vllm_config
        # Or the layers' names would be taken.
        monkeypatch.setattr(config.compilation_config, "static_forward_context", {})
        with set_current_vllm_config(config), torch.device("meta"):
            model = type(runner.model)(vllm_config=config)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("backbone.")}
    elsewhere = [name for name, tensor in own.items() if tensor.device.type != "meta"]
    assert elsewhere == []
