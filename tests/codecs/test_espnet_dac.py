# SPDX-License-Identifier: Apache-2.0
"""ESPnet's DAC from its own files: codes and samples are those of ESPnet's own class.

The expected values are written by tests/references/espnet/dac.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.espnet_dac import GENERATOR, PROJECTED, tensors, write_espnet_dac
from vllm.unison.codecs import Codec, load_codec
from vllm.unison.codecs.espnet_dac import WEIGHTS_FILE
from vllm.unison.formats.espnet_dac import espnet_dac_config, espnet_dac_files

EXPECTED = json.loads(Path(__file__).with_name("espnet_dac.json").read_text())
KINDS = {"plain": GENERATOR, "projected": PROJECTED}
EVERY = 97


def clip() -> torch.Tensor:
    time = torch.arange(40 * 320 + 100) / 16000
    return 0.3 * torch.sin(2 * torch.pi * (200 + 900 * time) * time)


def made(folder: Path) -> Path:
    """The folder that is made of a published one."""
    settings, weights = espnet_dac_files(folder)
    new = folder.with_name(f"{folder.name}_made")
    new.mkdir()
    (new / "config.json").write_text(json.dumps(espnet_dac_config(settings)))
    (new / WEIGHTS_FILE).symlink_to(weights)
    return new


def load(folder: Path, **options: Any) -> Codec:
    return load_codec(str(made(folder)), **options)


@pytest.mark.parametrize("kind", list(KINDS))
def test_codes_and_samples_are_those_of_espnet(kind: str, tmp_path: Path) -> None:
    codec = load(write_espnet_dac(tmp_path / "codec", KINDS[kind], nested=kind == "projected"))
    expected = EXPECTED[kind]
    assert (codec.sample_rate, codec.samples_per_frame) == (16000, 320)
    assert (codec.num_codebooks, codec.codebook_size) == (8, 16)
    codes = codec.encode(clip())
    assert codes.tolist() == expected["codes"]
    samples = codec.decode(codes)
    assert len(samples) == expected["num_samples"]
    torch.testing.assert_close(
        samples[::EVERY], torch.tensor(expected["samples"]), atol=2e-5, rtol=1e-4
    )
    assert samples.abs().max() > 0.05
    assert load_codec(f"{tmp_path}/codec_made", num_codebooks=3).encode(clip()).shape[1] == 3


def test_frequencies_that_were_learned(tmp_path: Path) -> None:
    plain = load(write_espnet_dac(tmp_path / "plain"))
    codes = plain.encode(clip())
    learned = write_espnet_dac(tmp_path / "learned")
    state = tensors(GENERATOR)
    names = [
        f"codec.generator.decoder.model.{name}.alpha" for name in ("2", "4.block.0", "4.block.2")
    ]
    torch.save(state | {name: torch.ones(1, 1, 1) for name in names}, learned / "360epoch.pth")
    codec = load(learned)
    torch.testing.assert_close(codec.decode(codes), plain.decode(codes))
    torch.save(state | {name: 2 * torch.ones(1, 1, 1) for name in names}, learned / "360epoch.pth")
    other = load_codec(f"{tmp_path}/learned_made").decode(codes)
    assert not torch.allclose(other, plain.decode(codes), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encdec_channels": 2}, r"generator_params.encdec_channels must be 1, not 2"),
        ({"encdec_activation": "ReLU"}, "encdec_activation must be 'Snake' or 'ELU', not 'ReLU'"),
        ({"encdec_ratios": []}, r"encdec_ratios must be integers of at least 1, not \[\]"),
        ({"encdec_ratios": [7]}, "sampling_rate must be a multiple of 7"),
        ({"decoder_final_activation": "Tanh"}, "final_activation must be null, not 'Tanh'"),
    ],
)
def test_settings_that_are_not_supported(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_espnet_dac(tmp_path / "codec")
    import yaml

    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["codec_conf"]["generator_params"].update(change)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=message):
        espnet_dac_config(folder / "config.yaml")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("plain", "decoder.model.0.conv.conv.bias", "lacks the tensor 'codec.generator.decoder"),
        ("projected", "quantizer.vq.layers.3.project_in.bias", "lacks the tensor 'quantizer.layer"),
    ],
)
def test_a_tensor_that_is_missing(kind: str, name: str, message: str, tmp_path: Path) -> None:
    folder = write_espnet_dac(tmp_path / "codec", KINDS[kind])
    state = tensors(KINDS[kind])
    del state[f"codec.generator.{name}"]
    torch.save(state, folder / "360epoch.pth")
    with pytest.raises(ValueError, match=message):
        load(folder)
