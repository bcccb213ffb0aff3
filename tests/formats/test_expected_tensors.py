# SPDX-License-Identifier: Apache-2.0
"""Which tensors a checkpoint must hold, and what is said of one that holds others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING

from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.unison.formats.expected_tensors import ExpectedTensors, expected_tensors, listed
from vllm.unison.testing.random_checkpoint import BACKBONES, write_random_speech_lm

EXPECTED = ExpectedTensors({"a": (2, 3), "b": (4,), "tied": (2, 3)}, frozenset({"tied"}))


def weights(**shapes: tuple[int, ...]) -> list[tuple[str, torch.Tensor]]:
    return [(name, torch.zeros(shape)) for name, shape in shapes.items()]


def test_all_pass_in_their_order() -> None:
    given = weights(b=(4,), a=(2, 3), tied=(2, 3))
    passed = list(EXPECTED.checked(given))
    assert [name for name, _ in passed] == ["b", "a", "tied"]
    assert all(got is tensor for (_, got), (_, tensor) in zip(passed, given, strict=True))


def test_what_another_tensor_stands_for_may_be_missing() -> None:
    assert len(list(EXPECTED.checked(weights(a=(2, 3), b=(4,))))) == 2


def test_what_is_computed_is_left_out() -> None:
    given = [*weights(a=(2, 3), b=(4,)), ("backbone.x.rotary_emb.inv_freq", torch.zeros(9))]
    assert [name for name, _ in EXPECTED.checked(given)] == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (weights(a=(2, 3)), r"^the checkpoint lacks the tensor 'b'$"),
        (weights(), r"^the checkpoint lacks 2 tensors: 'a', 'b'$"),
        (weights(a=(2, 3), b=(4,), c=(1,)), r"holds a tensor that the model lacks: 'c'$"),
        # Upstream skips these where it does not know them.
        (
            [*weights(a=(2, 3), b=(4,)), ("a.bias", torch.zeros(1))],
            r"holds a tensor that the model lacks: 'a\.bias'$",
        ),
        (weights(a=(3, 3)), r"'a' must have shape \[2, 3\], as config\.json says, not \[3, 3\]$"),
        (weights(a=(6,)), r"'a' must have shape \[2, 3\], .* not \[6\]$"),
        (weights(tied=(1,)), r"'tied' must have shape \[2, 3\], .* not \[1\]$"),
    ],
)
def test_a_refusal_names_the_tensor(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(EXPECTED.checked(given))


def test_of_many_tensors_a_few_are_named() -> None:
    assert listed(list("abcde")) == "5 tensors: 'a', 'b', 'c', 'd', 'e'"
    assert listed(list("abcdefg")) == "7 tensors: 'a', 'b', 'c', 'd', 'e' and 2 more"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_written_checkpoint_is_what_is_expected(
    backbone: str, tied: bool, tmp_path: Path
) -> None:
    write_random_speech_lm(
        tmp_path, backbone, num_streams=2, tied=tied, codec=None, hidden_size=16, num_layers=1
    )
    config = SpeechLMConfig.from_pretrained(tmp_path).backbone_config
    expected = expected_tensors(config, {"head_offsets": (2, 16)})
    assert expected is not None
    held = {name: tuple(w.shape) for name, w in load_file(tmp_path / "model.safetensors").items()}
    head = "backbone.lm_head.weight"
    assert expected.optional == ({head} if tied else frozenset())
    assert (head in held) != tied
    assert {n: s for n, s in expected.shapes.items() if n not in expected.optional} == held


def test_experts_have_the_names_that_are_published() -> None:
    config = CONFIG_MAPPING["qwen3_moe"](
        architectures=["Qwen3MoeForCausalLM"],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_experts=2,
        moe_intermediate_size=8,
    )
    expected = expected_tensors(config, {})
    assert expected is not None
    name = "backbone.model.layers.0.mlp.experts.1.gate_proj.weight"
    assert expected.shapes[name] == (8, 16)


def test_nothing_is_expected_of_an_architecture_that_transformers_lacks() -> None:
    llama = CONFIG_MAPPING["llama"](architectures=["MyLlama"], num_hidden_layers=1)
    assert expected_tensors(llama, {}) is None
    encoder = CONFIG_MAPPING["dac"](architectures=["DacModel"])
    assert expected_tensors(encoder, {}) is None
