# SPDX-License-Identifier: Apache-2.0
"""A model's specification, read from its configuration."""

import gc
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.random_layouts import example
from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.unison.model import spec as spec_module
from vllm.unison.model.layout import LayoutError
from vllm.unison.model.phases import PhaseTable
from vllm.unison.model.spec import (
    CodecSource,
    SpeechSpec,
    TaskPrompt,
    TextFrontendSpec,
    multistream_spec,
)


def config(**changes: Any) -> SpeechLMConfig:
    return SpeechLMConfig(**{"stream_layout": example(), **changes})


def test_what_is_read() -> None:
    spec = SpeechSpec.from_config(
        config(
            embedding={"primary_skip_ids": [1], "auxiliary_skip_ids": [0, 2]},
            head_offsets=True,
            codec={"name_or_path": "codec", "revision": "main"},
            tasks={"speak": [1, "text", 5], "listen": ["audio", "flush", 1], "begin": [9]},
        ),
        "/model",
    )
    assert spec.layout.num_streams == 3
    assert (spec.primary_skip_ids, spec.auxiliary_skip_ids) == ((1,), (0, 2))
    assert spec.has_head_offsets and spec.has_codec
    assert spec.codec == CodecSource("codec", "main")
    assert [task.name for task in spec.tasks] == ["speak", "listen", "begin"]
    assert [task.needs for task in spec.tasks] == [{"text"}, {"audio"}, set()]
    assert spec.model_path == "/model"
    assert isinstance(spec.table, PhaseTable) and spec.table is spec.table


def test_voices_and_defaults_are_read() -> None:
    spec = SpeechSpec.from_config(
        config(
            tasks={"speak": [1, "voice", "text", 5], "listen": ["audio", 1]},
            voices={"slt": [2, 3], "rms": [4]},
            default_voice="rms",
            languages=["en", "de"],
            text_frontend={"language": "en", "lexicon": "words.gz"},
            generation_defaults={"speak": {"temperature": 0.7, "guidance_scale": 2.0}},
        )
    )
    assert spec.languages == ("en", "de")
    assert spec.text_frontend == TextFrontendSpec("en", "words.gz")
    assert spec.voices == {"slt": (2, 3), "rms": (4,)} and spec.default_voice == "rms"
    assert [task.takes_voice for task in spec.tasks] == [True, False]
    assert [task.needs for task in spec.tasks] == [{"text"}, {"audio"}]
    assert spec.generation_defaults == {"speak": {"temperature": 0.7, "guidance_scale": 2.0}}


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        ({"null_prompt": [4, 39, 0], "audio_only": True}, ((4, 39, 0), True)),
        ({"null_prompt": "pads"}, ("pads", False)),
        ({}, (None, False)),
    ],
)
def test_guidance_is_read(guidance: dict[str, Any], expected: tuple[Any, bool]) -> None:
    spec = SpeechSpec.from_config(config(guidance=guidance))
    assert (spec.null_prompt, spec.guides_audio_only) == expected


def test_defaults() -> None:
    spec = SpeechSpec.from_config(config())
    assert spec == SpeechSpec(spec.layout)
    assert not spec.has_codec and not spec.has_head_offsets and spec.tasks == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream_layout": {}}, r"stream_layout\.delays is missing"),
        ({"embedding": {"skip": []}}, r"embedding has unknown keys \['skip'\]"),
        (
            {"embedding": {"primary_skip_ids": [40]}},
            r"embedding\.primary_skip_ids\[0\] must be in \[0, 40\), not 40",
        ),
        (
            {"embedding": {"auxiliary_skip_ids": [0, "1"]}},
            r"embedding\.auxiliary_skip_ids\[1\] must be in \[0, 40\), not '1'",
        ),
        (
            {"embedding": {"auxiliary_skip_ids": 0}},
            r"embedding\.auxiliary_skip_ids must be a list",
        ),
        ({"codec": {"path": "x"}}, r"codec has unknown keys \['path'\]"),
        ({"codec": "x"}, "codec must be an object, not 'x'"),
        ({"codec": {}}, r"codec\.name_or_path is missing"),
        ({"tasks": {"speak": [40]}}, r"tasks\.speak\[0\] must be a token in \[0, 40\) or one of"),
        ({"tasks": {"speak": [1, "texts"]}}, r"tasks\.speak\[1\] must be .* not 'texts'"),
        ({"tasks": {"speak": ["text", "text"]}}, r"tasks\.speak must hold .* at most once each"),
        ({"tasks": {"a": ["audio", 1, "audio"]}}, r"tasks\.a must hold .* at most once each"),
        (
            {"voices": {"a": [1]}, "tasks": {"a": ["voice", "voice"]}},
            r"tasks\.a must hold .* at most once each",
        ),
        ({"tasks": {"a": ["voice"]}}, r"tasks\.a holds 'voice', so voices or codec must be given"),
        ({"voices": ["a"]}, r"voices must be an object"),
        ({"voices": {"": [1]}}, r"voices must not have an empty name"),
        ({"voices": {"a": []}}, r"voices\.a must hold at least one token id"),
        ({"voices": {"a": 1}}, r"voices\.a must be a list"),
        ({"voices": {"a": [1, 40]}}, r"voices\.a\[1\] must be in \[0, 40\), not 40"),
        ({"voices": {"a": [True]}}, r"voices\.a\[0\] must be in \[0, 40\), not True"),
        (
            {"languages": ["English"]},
            r"languages\[0\] must be a code of ISO 639, such as 'en', not 'English'",
        ),
        ({"languages": "en"}, "languages must be a list"),
        (
            {"text_frontend": {"language": "de"}},
            r"text_frontend\.language must be one of \['en'\], not 'de'",
        ),
        (
            {"text_frontend": {"language": "en", "lexicon": 5}},
            r"text_frontend\.lexicon must be null or a file's name, not 5",
        ),
        ({"text_frontend": {"words": 5}}, r"text_frontend has unknown keys \['words'\]"),
        ({"text_frontend": "en"}, "text_frontend must be an object"),
        ({"languages": ["en", 5]}, r"languages\[1\] must be a code of ISO 639"),
        (
            {"voices": {"a": [1]}, "default_voice": "b"},
            r"default_voice must be null or one of \['a'\], not 'b'",
        ),
        (
            {"generation_defaults": {"sing": {}}},
            r"generation_defaults has unknown keys \['sing'\]",
        ),
        (
            {"tasks": {"a": [1]}, "generation_defaults": {"a": {"n": 2}}},
            r"generation_defaults\.a has unknown keys \['n'\]",
        ),
        (
            {"tasks": {"a": [1]}, "generation_defaults": {"a": {"guidance_scale": -1}}},
            r"generation_defaults\.a: guidance_scale must be a number in .0, 100.",
        ),
        ({"guidance": {"null_prompt": 3}}, r"guidance\.null_prompt must be a list"),
        (
            {"guidance": {"null_prompt": [0, 40]}},
            r"guidance\.null_prompt\[1\] must be in \[0, 40\), not 40",
        ),
        (
            {"guidance": {"null_prompt": [-1]}},
            r"guidance\.null_prompt\[0\] must be in \[0, 40\), not -1",
        ),
        ({"guidance": {"scale": 2}}, r"guidance has unknown keys \['scale'\]"),
        ({"tasks": ["text"]}, r"tasks must be an object, not \['text'\]"),
        ({"tasks": {"speak": "text"}}, r"tasks\.speak must be a list"),
        (
            {
                "stream_layout": example(
                    text_slice=None, phases=[{"name": "audio", "kind": "audio"}]
                ),
                "tasks": {"speak": ["text"]},
            },
            r"tasks\.speak holds 'text', so stream_layout\.text_slice must be given",
        ),
    ],
)
def test_a_refusal_names_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        SpeechSpec.from_config(config(**changes))


def test_optional_sections_are_read() -> None:
    parts = [1, [2, "reference_text"], [3, "voice"], "text", ["audio"], 5]
    codec = {"name_or_path": "codec"}
    (task,) = SpeechSpec.from_config(config(tasks={"speak": parts}, codec=codec)).tasks
    assert task.parts == (1, (2, "reference_text"), (3, "voice"), "text", ("audio",), 5)
    assert task.all_parts == (1, 2, "reference_text", 3, "voice", "text", "audio", 5)
    assert (task.needs, task.takes) == ({"text"}, {"text", "audio"})
    assert task.takes_voice and task.takes_reference_text
    assert task.laid_with({"text"}) == (1, "text", 5)
    assert task.laid_with({"text", "voice"}) == (1, 3, "voice", "text", 5)
    assert task.laid_with({"audio"}) == (1, "text", "audio", 5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[1, 2]], r"tasks\.a\[0\] is an optional section and must hold one of"),
        ([1, ["text", "audio"]], r"tasks\.a\[1\] is an optional section and must hold one of"),
        ([[["text"]]], r"tasks\.a\[0\]\[0\] must be a token in"),
        ([[1, "texts"]], r"tasks\.a\[0\]\[1\] must be a token in"),
        (["text", [1, "text"]], r"tasks\.a must hold 'text', .* at most once each"),
        (["reference_text"], r"tasks\.a holds 'reference_text', so it must hold 'voice'"),
    ],
)
def test_a_refusal_of_a_section_names_its_place(parts: list[Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        SpeechSpec.from_config(config(tasks={"a": parts}, codec={"name_or_path": "codec"}))


def test_an_unknown_key_of_the_whole_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"config\.json has unknown keys \['vocies', 'xs'\]; known"
    ):
        config(vocies={}, xs=1)


def test_what_transformers_writes_is_known(tmp_path: Path) -> None:
    written = config(architectures=["SpeechLMForConditionalGeneration"], dtype="bfloat16")
    written.save_pretrained(tmp_path)
    shown = json.loads((tmp_path / "config.json").read_text())
    assert {"transformers_version", "model_type", "dtype"} <= shown.keys()
    (tmp_path / "config.json").write_text(
        json.dumps(written.to_dict() | {"torch_dtype": "float32"})
    )
    read = SpeechLMConfig.from_pretrained(tmp_path, attn_implementation="eager", num_labels=3)
    assert read.stream_layout == written.stream_layout
    assert SpeechLMConfig(**read.to_dict()).to_dict() == read.to_dict()


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone_config\.model_type must be .* not 'abacus'"):
        config(backbone_config={"model_type": "abacus"})


def test_only_speech_models_have_a_specification() -> None:
    assert multistream_spec(None) is None
    text: Any = SimpleNamespace(hf_config=SimpleNamespace(model_type="llama"), model="m")
    assert multistream_spec(text) is None
    nothing: Any = SimpleNamespace()
    assert multistream_spec(nothing) is None


def test_a_configuration_has_one_specification() -> None:
    model: Any = SimpleNamespace(hf_config=config(), model="folder")
    other: Any = SimpleNamespace(hf_config=config(), model="folder")
    spec = multistream_spec(model)
    assert spec is not None and spec.model_path == "folder"
    assert multistream_spec(model) is spec
    assert multistream_spec(other) is not spec
    known = len(spec_module._specs)
    del model, other
    gc.collect()
    assert len(spec_module._specs) == known - 2


def test_task_needs() -> None:
    assert TaskPrompt("a", (1, "text", "audio", "flush")).needs == {"text", "audio"}
    assert TaskPrompt("a", (1, "flush")).needs == frozenset()
