# SPDX-License-Identifier: Apache-2.0
"""Bagpiper's published files as configuration, specification and tensors."""

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
import yaml
from transformers import Qwen3Config, XcodecConfig
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoderConfig,
)

from tests.support import published_layouts
from tests.support.bagpiper import (
    AUDIO_ENCODER,
    CODEC,
    DECODING,
    DECODING_FILE,
    MODEL,
    TRAIN_FILE,
    ids_of,
    train_settings,
    write_bagpiper,
)
from vllm.transformers_utils.configs.bagpiper import BagpiperConfig
from vllm.unison.bagpiper_model import downloaded_folder, engine_folder
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.formats.bagpiper_config import bagpiper_config, bagpiper_sources, read_decoding
from vllm.unison.formats.bagpiper_weights import (
    WEIGHTS_FILE,
    expected_bagpiper_tensors,
    read_bagpiper_weights,
)
from vllm.unison.model.conversation import Recording, Turn
from vllm.unison.model.dialogue import Said
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.output_heads import Heads
from vllm.unison.model.phases import PhaseTable, StateKind, replay
from vllm.unison.model.spec import SpeechSpec

PUBLISHED_DECODING = """
dtype: bfloat16
enforce_modality: ["text", "audio"]
audio: {temperature: 0.8, topk: 20, cfg: 3, max_step: 2048, min_step: 50}
text: {temperature: 0.6, topk: 20, cfg: 1, max_step: 8192, min_step: 1}
"""


def published_config(order: tuple[str, ...] = ("text", "discrete_audio")) -> dict[str, Any]:
    """config.json for a model of the published sizes."""
    settings = train_settings(Path("Qwen"))
    parts = settings["multimodal_io"]
    settings["multimodal_io"] = {name: parts[name] for name in (*order, "continuous_audio")}
    settings["model"]["model_conf"]["dtype"] = "bfloat16"
    sources = bagpiper_sources(TRAIN_FILE, yaml.safe_dump(settings, sort_keys=False))
    backbone = Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
        max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    encoder = Qwen3OmniMoeAudioEncoderConfig(output_dim=2048)
    return bagpiper_config(
        sources,
        backbone.to_dict(),
        151936,
        XcodecConfig().to_dict(),
        encoder.to_dict(),
        read_decoding("inference.yaml", PUBLISHED_DECODING),
    )


def spec_of(config: dict[str, Any]) -> SpeechSpec:
    read = BagpiperConfig.from_dict(json.loads(json.dumps(config)))
    return read.speech_spec("")


def test_the_published_sizes_give_the_published_layout() -> None:
    config = published_config()
    assert config["backbone_config"]["vocab_size"] == 160392
    assert config["id_ranges"] == {"text": [256, 152192], "discrete_audio": [152192, 160392]}
    assert config["dtype"] == "bfloat16"
    spec = spec_of(config)
    known = StreamLayout.from_dict(published_layouts.bagpiper())
    for name in ("delays", "slices", "pad_token_ids", "text_slice", "fills", "outside_codebook"):
        assert getattr(spec.layout, name) == getattr(known, name), name
    for own, shown in zip(spec.layout.phases, known.phases, strict=False):
        names = {"plan": "text", "sound": "audio"}
        assert own.begin_tokens == shown.begin_tokens and own.end_rule == shown.end_rule
        moves = {(t.token, names.get(t.to, t.to), t.forced) for t in own.transitions}
        assert moves == {(t.token, t.to, t.forced) for t in shown.transitions}


def test_the_published_sizes_give_the_published_number_of_tensors() -> None:
    config = BagpiperConfig.from_dict(published_config())
    expected = expected_bagpiper_tensors(config)
    # As ESPnet's own fork of vLLM counts them, the loss's weights apart.
    assert len(expected.shapes) == 1381 and not expected.optional
    assert expected.shapes["stream_emb.weight"] == (8, 4096)
    assert expected.shapes["adaptor.continuous_audio.weight"] == (4096, 2048)
    assert expected.shapes["lm_head.weight"] == (160392, 4096)


def test_a_model_that_chooses_goes_on_after_the_end_of_a_turn() -> None:
    layout = spec_of(published_config()).layout
    table, start = PhaseTable(layout), layout.phase_index("choice")

    def phase_after(*output: int) -> str:
        state = replay(table, [1, 5, 7, 300, 2, 6], output, 1000, start_phase=start).state
        names = [phase.name for phase in layout.phases]
        return names[state] if state < len(names) else table.kind[state]

    assert phase_after() == "choice"
    assert phase_after(7) == phase_after(7, 300) == "chosen_text"
    assert phase_after(8) == "chosen_sound"
    assert phase_after(7, 300, 2) == StateKind.DONE
    assert phase_after(7, 300, 3) == StateKind.FORCED
    assert phase_after(7, 300, 3, 6) == "choice"
    assert phase_after(7, 300, 3, 6, 8, *[152193] * 60, 3, 6) == "choice"
    heads = Heads(layout, table)
    (mask,) = heads.text_masks()[2 * start]
    assert (heads.text_range[0] + np.flatnonzero(mask)).tolist() == [7, 8]


def test_conversations_are_laid_as_espnet_lays_them() -> None:
    dialogue = spec_of(published_config()).dialogue
    assert dialogue is not None
    stored = Path(__file__).parents[1] / "references" / "bagpiper" / "espnet.json"
    cases = [case for case in json.loads(stored.read_text())["cases"] if "messages" in case]
    assert len(cases) > 3
    for case in cases:
        expected = [row[0] for row in case["prompt"]]
        turns = [
            Turn(role, (Recording(None) if modality == "audio" else said,))
            for role, modality, said in case["messages"]
        ]
        assert case["task"] in dialogue.tasks_of(turns)
        ids: list[int] = []
        for segment in dialogue.lay_out(case["task"], turns):
            if not isinstance(segment, Said):
                ids += segment
            elif isinstance(segment.content, str):
                ids += ids_of(segment.content)
            else:
                rest = expected[len(ids) :]
                ids += [0] * next(index for index, token in enumerate(rest) if token)
        assert ids == [*expected, 6, 7]


def test_a_turn_with_several_parts_is_a_recording_and_a_text() -> None:
    dialogue = spec_of(published_config()).dialogue
    assert dialogue is not None
    clip = Recording(None)
    turns = [Turn("user", ("what", clip, "is it?"))]
    assert dialogue.tasks_of(turns) == ("audio_and_text_to_text",)
    where = "messages[0].content"
    assert dialogue.lay_out("audio_and_text_to_text", turns) == [
        (1,), (5, 8), Said(clip, where), (3,), (5, 7), Said("what\nis it?", where), (2,), (6, 7)
    ]  # fmt: skip


def test_a_model_that_does_not_listen_refuses_recordings() -> None:
    dialogue = spec_of(published_config() | {"audio_encoder_config": None}).dialogue
    assert dialogue is not None
    with pytest.raises(ValueError, match=r"messages\[0\].content must be text: the model has no"):
        dialogue.tasks_of([Turn("user", (Recording(None),))])


def test_ids_follow_the_order_of_the_parts() -> None:
    spec = spec_of(published_config(("discrete_audio", "text")))
    assert spec.layout.slices[0] == (257, 1281)
    assert spec.layout.text_slice == (256 + 8 * 1025, 160392)
    assert spec.text_substitutes == {256 + 8 * 1025: 0}


def test_requests_get_the_released_settings() -> None:
    audio = {"stream_temperature": 0.8, "stream_top_k": 20, "guidance_scale": 3.0}
    text = {"temperature": 0.6, "top_k": 20}
    defaults = spec_of(published_config()).generation_defaults
    assert defaults == {
        "text_to_audio": text | audio | {"max_tokens": 8192 + 2 + 2048},
        "text_to_text": text | {"max_tokens": 8192},
        "caption_to_audio": {"temperature": 0.8, "top_k": 20, "max_tokens": 2048} | audio,
        "any": text | audio | {"max_tokens": 8192 + 2 + 2048},
        "audio_to_text": text | {"max_tokens": 8192},
        "audio_and_text_to_text": text | {"max_tokens": 8192},
    }
    assert read_decoding("", "") == read_decoding("inference.yaml", PUBLISHED_DECODING)


def changed(name: str, value: Any) -> str:
    """The YAML of training with another setting."""
    settings = train_settings(Path("Qwen"))
    *path, last = name.split(".")
    place = settings
    for part in path:
        place = place[part]
    place[last] = value
    return yaml.safe_dump(settings, sort_keys=False)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("multimodal_io.discrete_audio.codec_choice", "ESPnet", "be 'Xcodec', not 'ESPnet'"),
        ("multimodal_io.discrete_audio.ssl_choice", "ESPnet", "be null, not 'ESPnet'"),
        ("multimodal_io.discrete_audio.delay_interleave", False, "be True, not False"),
        ("multimodal_io.discrete_audio.codec_max_token_per_frame", 0, "an integer of at least 1"),
        ("multimodal_io.continuous_audio.encoder_choice", "own", "be 'huggingface', not 'own'"),
        ("multimodal_io.text.tokenizer_name", None, "name a folder or a hub id, not None"),
        ("multimodal_io.video", {}, "hold text, discrete_audio and perhaps continuous_audio"),
        ("model.model_choice", "parallel_pp", "be 'parallel', not 'parallel_pp'"),
        ("model.model_hf_tag", 3, "name a folder or a hub id, not 3"),
        ("model.model_conf.dtype", "int8", "be 'bfloat16' or 'float16' or 'float32'"),
    ],
)
def test_settings_that_are_not_supported_are_named(name: str, value: Any, accepted: str) -> None:
    with pytest.raises(ValueError, match=f"{TRAIN_FILE}: .*{accepted}"):
        bagpiper_sources(TRAIN_FILE, changed(name, value))


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("text: {cfg: 2}", "text.cfg must be at most 1, since text is not guided, not 2"),
        ("audio: {topk: 0}", "audio.topk must be an integer of at least 1, not 0"),
        ("audio: {temperature: warm}", "audio.temperature must be a number of at least 0"),
        ("audio: {min_step: 1.5}", "audio.min_step must be an integer of at least 0, not 1.5"),
        ("- 1", "inference.yaml must be YAML of settings by name"),
        ("{", "inference.yaml must be YAML of settings by name: "),
    ],
)
def test_settings_of_inference_that_cannot_be_are_named(text: str, accepted: str) -> None:
    with pytest.raises(ValueError, match=accepted):
        read_decoding("inference.yaml", text)


def test_recorded_ids_that_do_not_follow_from_the_parts_are_refused(tmp_path: Path) -> None:
    settings = train_settings(tmp_path / "sources")
    settings["vocab_intervals"] = {"text": [[392, 664]]}
    folder = write_bagpiper(tmp_path / "model", tmp_path / "sources", training=settings)
    with pytest.raises(ValueError, match=r"vocab_intervals\.text must be \[256, 528\)"):
        engine_folder(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a published folder."""
    return lambda **options: write_bagpiper(tmp_path / "model", tmp_path / "sources", **options)


@pytest.mark.parametrize("name", ["model.pt", "base.pt", "mp_rank_00_model_states.pt"])
def test_a_folder_is_made_once_until_a_file_changes(name: str, write: Callable[..., Path]) -> None:
    folder = write(weights_file=name)
    made = engine_folder(folder)
    assert made is not None and (made / WEIGHTS_FILE).resolve() == folder / name
    config = json.loads((made / "config.json").read_text())
    assert config["model_type"] == "bagpiper" and config["decoding"] == DECODING
    assert engine_folder(folder) == made and engine_folder(made) is None
    changes = {"audio": {"min_step": 3}}
    (folder / DECODING_FILE).write_text(yaml.safe_dump(changes))
    again = engine_folder(folder)
    assert again is not None and again != made
    assert json.loads((again / "config.json").read_text())["decoding"]["audio"]["min_step"] == 3
    assert sorted(os.listdir(folder)) == sorted((name, TRAIN_FILE, DECODING_FILE))


def test_other_folders_and_names_are_let_alone(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("model: opuslm\n")
    assert engine_folder(other) is None
    asked: list[str] = []
    monkeypatch.setattr(
        "vllm.unison.made_folder.in_repository", lambda name, *_: asked.__iadd__([name]) != []
    )
    for name in ("gpt2", "some/model", "some/bagpiper-converted"):
        assert downloaded_folder(name) is None
    assert asked == ["some/bagpiper-converted"]


def test_a_repository_is_downloaded_if_its_yaml_is_of_such_a_model(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, empty = write(), tmp_path / "empty"
    empty.mkdir()
    asked: list[tuple[str, ...]] = []

    def download(name: str, revision: Any, allow_patterns: list[str]) -> str:
        asked.append((name, *allow_patterns))
        if name == "a/bagpiper-none":
            raise OSError("no such repository")
        return str(empty if name == "a/bagpipers" else folder)

    monkeypatch.setattr("vllm.unison.made_folder.in_repository", lambda *_: False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert downloaded_folder("a/bagpipers") is downloaded_folder("a/bagpiper-none") is None
    assert downloaded_folder("a/Bagpiper-tts") == folder
    assert [pattern for _, pattern in asked] == ["*.yaml", "*.yaml", "*.yaml", "*.pt"]


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        (MODEL, r"model\.model_hf_tag"),
        (CODEC, r"discrete_audio\.codec_hf_model_tag"),
        (AUDIO_ENCODER, r"continuous_audio\.encoder_hf_model_tag"),
    ],
)
def test_a_source_that_is_not_there_is_named(
    part: str, setting: str, tmp_path: Path, write: Callable[..., Path], cache: Path
) -> None:
    folder = write()
    os.rename(tmp_path / "sources" / part, tmp_path / "gone")
    with pytest.raises(ValueError, match=f"{TRAIN_FILE}: .*{setting}, .*must be a folder, or"):
        engine_folder(folder)
    assert not (cache / "bagpiper").exists()


def test_two_files_of_training_or_of_weights_are_refused(write: Callable[..., Path]) -> None:
    folder = write()
    (folder / "train.yaml").write_text((folder / TRAIN_FILE).read_text())
    with pytest.raises(ValueError, match=r"one YAML of training, not \['train.yaml', 'train_bag"):
        engine_folder(folder)
    (folder / "train.yaml").unlink()
    (folder / "base.pt").touch()
    with pytest.raises(ValueError, match="must hold one file of weights"):
        engine_folder(folder)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a published folder."""
    made = engine_folder(folder)
    assert made is not None
    config = BagpiperConfig.from_dict(json.loads((made / "config.json").read_text()))
    return dict(read_bagpiper_weights(made, config))


_TOWER = "multimodal_io_dict.continuous_audio.model.audio_tower.conv_out.weight"
_QUANTIZER = "multimodal_io_dict.discrete_audio.codec_model.quantizer.quantizers.0.codebook.embed"


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "stream_emb.weight", "lm_head.weight", _TOWER]
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(
    name: str, write: Callable[..., Path]
) -> None:
    folder = write(change=lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"the checkpoint lacks the tensor '{name}'"):
        read_all(folder)
    folder = write(change=lambda tensors: tensors.update({name: torch.zeros(2, 3)}))
    with pytest.raises(ValueError, match=f"'{name}' must have shape .* not \\[2, 3\\]"):
        read_all(folder)


def test_a_tensor_that_the_model_lacks_is_named(write: Callable[..., Path]) -> None:
    folder = write(change=lambda tensors: tensors.update(lora=torch.zeros(1)))
    with pytest.raises(ValueError, match="a tensor that the model lacks: 'lora'"):
        read_all(folder)
    folder = write()
    assert "vocab_weight" not in read_all(folder)


def test_the_codec_is_read_from_the_models_own_file(write: Callable[..., Path]) -> None:
    made = engine_folder(write())
    assert made is not None
    config = BagpiperConfig.from_dict(json.loads((made / "config.json").read_text()))
    codec = codec_of(config.speech_spec(str(made)), "cpu")
    assert (codec.num_codebooks, codec.codebook_size) == (8, 16)
    assert codec.samples_per_frame == 320 and codec.sample_rate == 16000


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_that_is_not_weights_is_refused_and_not_executed(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write()
    monkeypatch.chdir(tmp_path)
    (folder / WEIGHTS_FILE).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} is not a file of weights"):
        read_all(folder)
    assert not Path("exploded").exists()
