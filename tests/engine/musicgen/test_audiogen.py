# SPDX-License-Identifier: Apache-2.0
"""A folder of audiocraft's two files and nothing else makes the audio that its tensors make."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.musicgen.cases import GREEDY, MusicCase, codes_of, generate
from tests.engine.musicgen.reference import MusicReference
from tests.engine.streams.conftest import open_engine
from tests.support.audiocraft import (
    as_yaml,
    audiocraft_names,
    audiocraft_settings,
    write_audiocraft,
)
from tests.support.musicgen import t5_tokenizer, write_musicgen
from vllm.config import ModelConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.tokenizers import get_tokenizer
from vllm.unison.audiocraft_model import FILES, downloaded_folder, engine_folder
from vllm.unison.formats.musicgen import read_musicgen
from vllm.unison.formats.musicgen_weights import CODEC_FILE, LANGUAGE_MODEL_FILE
from vllm.unison.packaged_model import folder_of

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> MusicReference:
    """The same model as transformers saves it; its codec is built as AudioGen's is."""
    folder = tmp_path_factory.mktemp("published")
    write_musicgen(folder, audiogen=True)
    return MusicReference(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write(reference: MusicReference, tmp_path: Path) -> Write:
    """Writes the two files; the text encoder is a folder of its own."""
    model = reference.model
    encoder = tmp_path / "t5"
    model.text_encoder.save_pretrained(encoder)
    t5_tokenizer().save_pretrained(encoder)
    tensors = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in model.state_dict().items()
        if "embed_positions" not in name
    }
    language, codec = audiocraft_names(tensors)

    def to(folder: Path, text_encoder: str = str(encoder), change: Any = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        settings = audiocraft_settings(model.config, text_encoder)
        if change is not None:
            change(settings)
        write_audiocraft(folder, language, codec, as_yaml(*settings))
        return folder

    return to


def test_codes_and_samples_are_those_of_transformers(
    write: Write, reference: MusicReference, tmp_path: Path
) -> None:
    folder = write(tmp_path / "model")
    cases = [
        MusicCase(text, 30, GREEDY | {"guidance_scale": scale})
        for text, scale in (("lo fi beat", 3.0), ("drums", 1.0))
    ]
    with open_engine(folder) as llm:
        assert llm.llm_engine.model_config.served_model_name == str(folder)
        outputs = generate(llm, cases)
    for case, output in zip(cases, outputs, strict=True):
        scale = case.options["guidance_scale"]
        codes, samples = reference.generate(case.text, case.num_frames, scale)
        assert np.array_equal(codes_of(output), codes), case
        audio = output.outputs[0].audio
        assert audio.sample_rate == 16000 and audio.samples.shape == (30 * 320,)
        np.testing.assert_allclose(audio.samples, samples, atol=1e-5)
    assert sorted(os.listdir(folder)) == sorted(FILES)


def test_names_stand_for_one_folder_until_the_files_change(
    write: Write, tmp_path: Path, cache: Path
) -> None:
    folder = write(tmp_path / "model")
    made = EngineArgs(model=str(folder)).model
    assert Path(made).parent == cache / "audiocraft"
    assert ModelConfig(str(folder)).model == made
    assert ModelConfig(str(folder)).tokenizer == made
    assert get_tokenizer(str(folder))("lo fi").input_ids == t5_tokenizer()("lo fi").input_ids
    assert EngineArgs(model=made).model == made
    assert EngineArgs(model=str(folder), served_model_name="x").served_model_name == "x"

    def longer(settings: list[dict[str, Any]]) -> None:
        settings[0]["dataset"]["segment_duration"] = 5

    write(folder, change=longer)
    changed = EngineArgs(model=str(folder)).model
    assert changed != made and len(os.listdir(cache / "audiocraft")) == 2
    lengths = [read_musicgen(one).defaults.max_length for one in (made, changed)]
    assert lengths == [504, 254]


def test_a_folder_with_a_configuration_is_left_alone(write: Write, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "config.json").write_text("{}")
    assert EngineArgs(model=str(folder)).model == str(folder)
    assert engine_folder(folder) is None


def snapshot(hub: Path, name: str) -> Path:
    """The folder of a hub id's only snapshot in a cache."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, which is all there is of it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_id_whose_snapshot_has_only_these_files(write: Write, hub: Path, cache: Path) -> None:
    write(snapshot(hub, "someone/audiogen"))
    arguments = EngineArgs(model="someone/audiogen")
    assert Path(arguments.model).parent == cache / "audiocraft"
    assert arguments.served_model_name == "someone/audiogen"
    assert read_musicgen(arguments.model).codec_config.sampling_rate == 16000
    config = ModelConfig("someone/audiogen")
    assert (config.model, config.served_model_name) == (arguments.model, "someone/audiogen")


class FakeHub:
    """The hub's answers, instead of the network."""

    def __init__(self, patch: pytest.MonkeyPatch, files: dict[str, Path]) -> None:
        import huggingface_hub

        self.files = files
        self.asked: list[tuple[str, str, str | None]] = []
        self.downloaded: list[tuple[str, str | None, list[str]]] = []
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub, "HfApi", lambda: self)
        patch.setattr(huggingface_hub, "snapshot_download", self.download)
        downloaded_folder.cache_clear()

    def file_exists(self, name: str, file: str, revision: str | None = None) -> bool:
        self.asked.append((name, file, revision))
        if name not in self.files:
            raise RuntimeError("no network")
        return (self.files[name] / file).is_file()

    def download(self, name: str, revision: str | None, allow_patterns: list[str]) -> str:
        self.downloaded.append((name, revision, allow_patterns))
        return str(self.files[name])


def test_a_hub_id_is_asked_for_once_and_downloaded(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Path
) -> None:
    folder = write(tmp_path / "model")
    fake = FakeHub(monkeypatch, {"some/audiogen": folder})
    made = folder_of(str(folder))
    assert EngineArgs(model="some/audiogen", revision="v2").model == made
    assert folder_of("some/audiogen", "v2") == made
    assert fake.asked == [("some/audiogen", name, "v2") for name in ("config.json", FILES[0])]
    assert fake.downloaded == [("some/audiogen", "v2", list(FILES))]


def test_other_hub_ids_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "other" / LANGUAGE_MODEL_FILE).touch()
    (tmp_path / "none").mkdir()
    files = {"some/musicgen": tmp_path / "other", "some/audiogen-none": tmp_path / "none"}
    fake = FakeHub(monkeypatch, files)
    cached = snapshot(hub, "some/musicgen-cached")
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    others = ("gpt2", "some/text-model", "s3://a/b")
    for name in (*files, "some/MusicGen-far", "some/musicgen-cached", *others):
        assert folder_of(name) == name
    # One question for a repository that has a config.json, none if the cache knows it.
    assert [
        name for name, *_ in fake.asked if name in ("some/musicgen", "some/musicgen-cached")
    ] == ["some/musicgen"]
    assert {name for name, *_ in fake.asked} == {
        "some/musicgen",
        "some/audiogen-none",
        "some/MusicGen-far",
    }
    assert fake.downloaded == []


def test_a_text_encoder_that_is_not_there_is_named(write: Write, hub: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", text_encoder="t5-large")
    with pytest.raises(ValueError, match=r"conditioners\.description\.t5\.name, 't5-large', must"):
        EngineArgs(model=str(folder))


def test_a_setting_that_is_not_supported_is_refused_by_name(write: Write, tmp_path: Path) -> None:
    def rotate(settings: list[dict[str, Any]]) -> None:
        settings[0]["transformer_lm"]["positional_embedding"] = "rope"

    folder = write(tmp_path / "model", change=rotate)
    with pytest.raises(ValueError, match=r"transformer_lm\.positional_embedding must be 'sin'"):
        EngineArgs(model=str(folder))


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_that_is_not_weights_is_refused_and_not_executed(
    name: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for save in (lambda file: file.write_bytes(pickle.dumps(_Bomb())), _save_bomb):
        save(folder / name)
        with pytest.raises(ValueError, match=f"{name} is not a file of weights"):
            EngineArgs(model=str(folder))
    assert not Path("exploded").exists()


def _save_bomb(file: Path) -> None:
    torch.save({"best_state": {}, "xp.cfg": _Bomb()}, file)


def test_files_that_are_not_whole_are_refused(write: Write, tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "model")
    torch.save({"pretrained": "facebook/encodec_32khz"}, folder / CODEC_FILE)
    with pytest.raises(ValueError, match="must hold the codec, not only name it"):
        EngineArgs(model=str(folder))
    (folder / CODEC_FILE).unlink()
    with pytest.raises(ValueError, match=f"must hold {CODEC_FILE} beside {LANGUAGE_MODEL_FILE}"):
        EngineArgs(model=str(folder))
    torch.save({"best_state": {}}, folder / LANGUAGE_MODEL_FILE)
    torch.save({"best_state": {}}, folder / CODEC_FILE)
    with pytest.raises(ValueError, match=r"xp\.cfg must be YAML of settings"):
        EngineArgs(model=str(folder))
    assert not (cache / "audiocraft").exists()


def test_the_folder_is_complete_or_not_there(
    write: Write, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "model")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", fail)
        with pytest.raises(OSError, match="no space left"):
            EngineArgs(model=str(folder))
    assert os.listdir(cache / "audiocraft") == []
    made = Path(EngineArgs(model=str(folder)).model)
    assert json.loads((made / "config.json").read_text())["model_type"] == "musicgen"
    assert (made / CODEC_FILE).resolve() == (folder / CODEC_FILE).resolve()
