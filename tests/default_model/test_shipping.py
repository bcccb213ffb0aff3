# SPDX-License-Identifier: Apache-2.0
"""ship.py writes what belongs to a new model, and refuses what must not be shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from tests.benchmarks import default_model_samples as samples
from tests.default_model.training_modules import training_modules
from vllm.unison.frontend.lexicon import Lexicon

ship, model_card = training_modules("ship", "model_card")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder of a training, with an exported checkpoint and its evaluation."""
    folder = tmp_path / "training"
    checkpoint = folder / "unison-default"
    (checkpoint / "codec").mkdir(parents=True)
    backbone = {"num_hidden_layers": 3, "hidden_size": 48}
    frontend = {"language": "en", "lexicon": "lexicon.tsv.gz"}
    config = {"backbone_config": backbone, "text_frontend": frontend}
    (checkpoint / "config.json").write_text(json.dumps(config))
    Lexicon({f"word{i}": "x" for i in range(1234)}).save(checkpoint / "lexicon.tsv.gz")
    codec = {"hop_length": 320, "steps_per_frame": 2, "num_codebooks": 8, "codebook_size": 512}
    (checkpoint / "codec" / "config.json").write_text(json.dumps(codec))
    weights = {"a": torch.zeros(3, 100)}
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt", "step": "1000"})
    save_file(weights, checkpoint / "codec" / "model.safetensors")
    (folder / "texts").mkdir()
    (folder / "texts" / "train.txt").write_text("example\tA vein of copper.\neveryday\tIt rains.\n")
    for voice in ("heart", "joe", "many"):
        (folder / "speech" / voice).mkdir(parents=True)
        (folder / "speech" / voice / "00000.int16").write_bytes(bytes(2 * 16000 * 360))
    (folder / "codec_loss.jsonl").write_text('{"step": 0}\n{"step": 5999}\n')
    (folder / "language_model_loss.png").write_bytes(b"loss")
    ship.pictures(folder).mkdir(parents=True)
    (ship.pictures(folder) / "default_model_guidance.png").write_bytes(b"guidance")
    (folder / "clips" / "samples").mkdir(parents=True)
    soundfile.write(folder / "clips" / "samples" / "train.wav", np.zeros(16000, "f4"), 16000)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository."""
    packaged = tmp_path / "root" / "vllm" / "unison" / "default_model"
    packaged.mkdir(parents=True)
    (packaged / "old.txt").write_text("old")
    page = tmp_path / "root" / "docs" / "default_model.md"
    page.parent.mkdir()
    page.write_text(f"# Model\n\n{ship.PAGE_BEGIN}\nold numbers\n{ship.PAGE_END}\n\nThe end.\n")
    return tmp_path / "root"


def files_of(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def test_all_of_a_model_is_written(trained, root):
    ship.ship(trained, trained / "unison-default", samples.report(), root, "It took a day.")
    assert sorted(files_of(root)) == [
        "benchmarks/results/default_model.json",
        "docs/audio/train.wav",
        "docs/benchmarks.md",
        "docs/default_model.md",
        "docs/images/default_model_guidance.png",
        "docs/images/default_model_loss.png",
        "vllm/unison/default_model/README.md",
        "vllm/unison/default_model/codec/config.json",
        "vllm/unison/default_model/codec/model.safetensors",
        "vllm/unison/default_model/config.json",
        "vllm/unison/default_model/lexicon.tsv.gz",
        "vllm/unison/default_model/model.safetensors",
    ]
    page = (root / "docs" / "default_model.md").read_text()
    assert page.startswith("# Model\n") and page.endswith("The end.\n")
    assert "old numbers" not in page and "(audio/train.wav)" in page
    card = (root / "vllm" / "unison" / "default_model" / "README.md").read_text()
    for said in (
        "CC0",
        "Apache-2.0",
        "WordNet licence",
        "6,000 steps",
        "1,000",
        "1,234",
        "It took a day.",
    ):
        assert said in card
    assert (
        "- `joe`, 0.1 hours: male" in card and "1.8 kbit/s" in card and "3 layers, 48 wide" in card
    )
    assert "All targets are met." in card


def test_a_card_says_what_is_missed(trained):
    report = samples.report()
    report["speech"][1]["distillmos"] = 3.0
    report["recognition"]["strangers"] = {}
    training = ship.training_of(trained, trained / "unison-default", "")
    text = model_card.card(report, training)
    assert (
        "Missed, or not measured: DistillMOS of speech; word errors of recognition, voices" in text
    )
    assert "**missed**" in text and "not measured" in text


def test_only_weights_that_were_evaluated_are_known(trained):
    checkpoint = trained / "unison-default"
    assert ship.evaluated(trained, checkpoint) is None
    report = samples.report()
    file = trained / "evaluations" / "step_00001000.json"
    file.write_text(json.dumps(report))
    assert ship.evaluated(trained, checkpoint) is None
    report["model"]["sha256"] = ship.digest(checkpoint / "model.safetensors")
    file.write_text(json.dumps(report))
    assert ship.evaluated(trained, checkpoint) == report


def test_the_packaged_model_is_measured_again(trained, root):
    report = samples.report()
    ship.ship(trained, trained / "unison-default", report, root, "It took a day.")
    before = files_of(root)
    again = samples.report()
    again["utterances"] = 12345
    again["recognition"]["known_voices"] = 0.321
    with pytest.raises(ValueError, match="of other weights"):
        ship.ship_measured(trained, again, root)
    assert files_of(root) == before
    packaged = ship.packaged_in(root)
    again["model"]["sha256"] = ship.digest(packaged / "model.safetensors")
    ship.ship_measured(trained, again, root)
    after = files_of(root)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {
        "benchmarks/results/default_model.json",
        "docs/benchmarks.md",
        "docs/default_model.md",
        "vllm/unison/default_model/README.md",
    }
    training = ship.training_of(trained, trained / "unison-default", "It took a day.")
    assert (packaged / "README.md").read_text() == model_card.card(again, training)
    assert "12345 sentences" in (packaged / "README.md").read_text()


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MAX_BYTES", 100, "the model's files must have at most 100 bytes"),
        ("MAX_CLIP_BYTES", 100, "the clips must have at most 100 bytes"),
    ],
)
def test_too_much_is_refused_and_nothing_is_written(trained, root, monkeypatch, limit, value, said):
    monkeypatch.setattr(ship, limit, value)
    before = files_of(root)
    with pytest.raises(ValueError, match=said):
        ship.ship(trained, trained / "unison-default", samples.report(), root, "")
    assert files_of(root) == before


def test_a_sentence_that_was_learned_is_refused(trained, root):
    before = files_of(root)
    with (trained / "texts" / "train.txt").open("a") as texts:
        texts.write("everyday\tThe road to the village was closed by the storm.\n")
    with pytest.raises(ValueError, match="within two words of training's 'The road to"):
        ship.ship(trained, trained / "unison-default", samples.report(), root, "")
    assert files_of(root) == before


def test_a_page_without_marks_is_refused(trained, root):
    (root / "docs" / "default_model.md").write_text("# Model\n")
    before = files_of(root)
    with pytest.raises(ValueError, match="must have <!-- measured"):
        ship.ship(trained, trained / "unison-default", samples.report(), root, "")
    assert files_of(root) == before


def test_the_step_travels_with_the_weights(trained: Any):
    assert ship.step_of(trained / "unison-default") == 1000
