# SPDX-License-Identifier: Apache-2.0
"""Where a model's codec is looked for, and whether it fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.model.test_spec import config
from vllm.unison.codecs import of_model
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.model.spec import CodecSource, SpeechSpec


def test_a_model_without_a_codec_has_none() -> None:
    with pytest.raises(ValueError, match="codec: this model has none"):
        codec_of(SpeechSpec.from_config(config()), "cpu")


class _Codecs:
    """Stands for the loader of codecs."""

    def __init__(self, codebook_size: int) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.codec = SimpleNamespace(codebook_size=codebook_size)

    def __call__(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.codec


def test_a_codec_is_looked_for_in_the_model_s_folder_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codecs = _Codecs(codebook_size=4)
    monkeypatch.setattr(of_model, "_load", codecs)
    source = {"name_or_path": "codec", "revision": "main"}
    spec = SpeechSpec.from_config(config(codec=source), str(tmp_path))
    assert codec_of(spec, "cpu") is codecs.codec
    (tmp_path / "codec").mkdir()
    codec_of(spec, "cpu")
    assert codecs.asked == [
        ("codec", CodecSource("codec", "main"), 3, "cpu"),
        (str(tmp_path / "codec"), CodecSource("codec", "main"), 3, "cpu"),
    ]


def test_a_codec_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_model, "_load", _Codecs(codebook_size=5))
    spec = SpeechSpec.from_config(config(codec={"name_or_path": "codec"}))
    message = r"stream_layout\.slices\[0\] must hold the codec's 5 codes, not 4"
    with pytest.raises(ValueError, match=message):
        codec_of(spec, "cpu")
