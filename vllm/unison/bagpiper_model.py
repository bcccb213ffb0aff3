# SPDX-License-Identifier: Apache-2.0
"""Bagpiper models as ESPnet publishes them: a file of weights, and YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from vllm.unison.made_folder import CONFIG_FILE, made_folder, published_repository

_LAYOUT = 1
"""Counts up with what is written, so that folders of other versions are not found."""

_DECODING_FILES = ("inference_audio.yaml", "inference.yaml", "inference_text.yaml")
"""Settings of inference, the first that there is; they differ in what is asked for alone."""

_JOB = re.compile(r"^job_type:\s*[\"']?speechlm[\"']?\s*$", re.MULTILINE)
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]*bagpiper[\w.-]*", re.IGNORECASE)
"""For other names the hub is not asked: it would cost users of every model a request."""


def engine_folder(folder: Path) -> Path | None:
    """The folder for the engine that stands for one of ESPnet's; None for any other.

    Raises:
        ValueError: naming what is missing, or a setting of the model's that is not supported.
    """
    if (folder / CONFIG_FILE).exists():
        return None
    trained = _trained_models(folder)
    if not trained:
        return None
    if len(trained) > 1:
        names = [file.name for file in trained]
        raise ValueError(f"{folder} must hold one YAML of training, not {names}")
    from vllm.unison.formats.bagpiper_weights import WEIGHTS_FILE
    from vllm.unison.formats.espnet_checkpoint import checkpoint_file

    training, weights = trained[0].resolve(), checkpoint_file(folder).resolve()
    files = (folder / name for name in _DECODING_FILES)
    decoding = next((file.resolve() for file in files if file.is_file()), None)
    sources = [training, weights, *([] if decoding is None else [decoding])]
    return made_folder(
        "bagpiper",
        _LAYOUT,
        sources,
        {WEIGHTS_FILE: weights},
        lambda: _read(training, decoding),
    )


@cache
def downloaded_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub id whose repository holds such a model; None for any other name.

    Such a name has "bagpiper" in it. Nothing but its YAML and its weights is downloaded, and the
    latter only if the former is of such a model.

    Raises:
        ValueError: if its files cannot be downloaded.
    """
    if not _HUB_ID.fullmatch(name):
        return None
    return published_repository(
        name, revision, "*.yaml", "*.pt", lambda f: bool(_trained_models(f))
    )


def _trained_models(folder: Path) -> list[Path]:
    """The YAML of training in a folder."""
    return [
        file
        for file in sorted(folder.glob("*.yaml"))
        if not file.name.startswith("inference") and _JOB.search(_text_of(file))
    ]


def _text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _read(training: Path, decoding: Path | None) -> Callable[[Path], None]:
    """Read the YAML, and what it names; gives what writes the rest of a folder."""
    from transformers import AutoConfig, AutoFeatureExtractor

    from vllm.unison.formats.bagpiper_config import (
        CODEC_IO,
        ENCODER_IO,
        TEXT_IO,
        bagpiper_config,
        bagpiper_sources,
        read_decoding,
    )
    from vllm.unison.formats.shifted_tokenizer import write_shifted_tokenizer

    sources = bagpiper_sources(training.name, _text_of(training))
    settings = read_decoding(
        *(("", "") if decoding is None else (decoding.name, _text_of(decoding)))
    )

    def part(setting: str, load: Callable[..., Any], name: str, *arguments: Any) -> Any:
        try:
            return load(name, *arguments)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{training.name}: {setting}, {name!r}, must be a folder, or a hub id that is in "
                "the cache or can be downloaded: what it says is not in the model's files"
            ) from error

    def configuration(setting: str, name: str) -> Any:
        return part(setting, AutoConfig.from_pretrained, name)

    tokenizer_setting = f"multimodal_io.{TEXT_IO}.tokenizer_name"
    encoder_setting = f"multimodal_io.{ENCODER_IO}.encoder_hf_model_tag"
    audio = extractor = None
    if sources.audio_encoder is not None:
        whole = configuration(encoder_setting, sources.audio_encoder)
        audio = whole.thinker_config.audio_config.to_dict()
        extractor = part(
            encoder_setting, AutoFeatureExtractor.from_pretrained, sources.audio_encoder
        )
    config = bagpiper_config(
        sources,
        configuration("model.model_hf_tag", sources.backbone).to_dict(),
        configuration(tokenizer_setting, sources.tokenizer).vocab_size,
        configuration(f"multimodal_io.{CODEC_IO}.codec_hf_model_tag", sources.codec).to_dict(),
        audio,
        settings,
    )
    if extractor is not None:
        for name in ("sampling_rate", "hop_length"):
            config[name] = int(getattr(extractor, name))

    def write(folder: Path) -> None:
        begin, end = config["id_ranges"][TEXT_IO]
        arguments = (sources.tokenizer, begin, end - begin, folder)
        part(tokenizer_setting, write_shifted_tokenizer, *arguments)
        if extractor is not None:
            extractor.save_pretrained(folder)
        text = json.dumps(config, indent=2) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")

    return write
