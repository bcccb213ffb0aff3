# SPDX-License-Identifier: Apache-2.0
"""OpusLM as ESPnet publishes it: weights and the settings of training, and nothing else.

Backbone, tokenizer and codec are repositories of their own, which the settings name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from vllm.unison.codecs.espnet_dac import WEIGHTS_FILE as CODEC_WEIGHTS_FILE
from vllm.unison.formats.espnet_checkpoint import EspnetCheckpoint, checkpoint_file
from vllm.unison.formats.espnet_dac import espnet_dac_config, espnet_dac_files
from vllm.unison.formats.espnet_settings import CONFIG_FILE
from vllm.unison.formats.opuslm_config import (
    OpusLMTraining,
    is_opuslm,
    read_opuslm_training,
)
from vllm.unison.formats.opuslm_weights import WEIGHTS_FILE
from vllm.unison.formats.shifted_tokenizer import write_shifted_tokenizer
from vllm.unison.made_folder import CONFIG_FILE as ENGINE_CONFIG_FILE
from vllm.unison.made_folder import made_folder, published_repository

CODEC = "ftshijt/espnet_codec_dac_large_v1.4_360epoch"
"""Hub id of the codec that all of these models were trained with; their files do not name it."""

CODEC_FOLDER = "codec"

SPEECH_UNITS = "espnet/xeus"
"""Hub id of the encoder of stream 0's units. It is read when a request gives audio."""

SPEECH_UNITS_FOLDER = "xeus"

_LAYOUT = 1
"""Counts up with what is written, so that folders of other versions are not found."""

_HUB_ID = re.compile(r"espnet/[\w.-]+", re.IGNORECASE)
"""For other names the hub is not asked: it would cost users of every model a request."""


def engine_folder(folder: Path) -> Path | None:
    """The folder for the engine that stands for a published OpusLM; None for any other.

    Raises:
        ValueError: naming what is missing, or a setting of the model's that is not supported.
    """
    if (folder / ENGINE_CONFIG_FILE).exists() or not is_opuslm(folder):
        return None
    settings = (folder / CONFIG_FILE).resolve()
    weights = checkpoint_file(folder).resolve()
    codec = espnet_dac_files(_codec_folder(folder))
    own_units = (folder / SPEECH_UNITS_FOLDER).resolve()
    units = {SPEECH_UNITS_FOLDER: own_units} if own_units.is_dir() else {}

    def read() -> Callable[[Path], None]:
        training = read_opuslm_training(settings)
        config, codec_config = _config(training, weights), espnet_dac_config(codec[0])
        config["speech_units"] = next(iter(units), SPEECH_UNITS)

        def write(made: Path) -> None:
            _write(made, training, config)
            (made / CODEC_FOLDER).mkdir()
            _write_json(made / CODEC_FOLDER / ENGINE_CONFIG_FILE, codec_config)
            (made / CODEC_FOLDER / CODEC_WEIGHTS_FILE).symlink_to(codec[1])

        return write

    sources = (settings, weights, *codec, *units.values())
    return made_folder("opuslm", _LAYOUT, sources, {WEIGHTS_FILE: weights, **units}, read)


def _codec_folder(folder: Path) -> Path:
    """The codec's folder: in the model's own, or where the hub's client keeps it."""
    if (own := folder / CODEC_FOLDER).is_dir():
        return own
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(CODEC, allow_patterns=["*.yaml", "*.pth"]))
    except Exception as error:  # Errors of its client have no class in common.
        raise ValueError(
            f"the codec {CODEC!r} must be in the cache or can be downloaded, or be a folder "
            f"{CODEC_FOLDER!r} in {folder}"
        ) from error


def _config(training: OpusLMTraining, weights: Path) -> dict[str, Any]:
    """config.json."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        backbone = AutoConfig.from_pretrained(training.backbone)
    except (OSError, ValueError) as error:
        raise ValueError(_not_found("transformer_conf.hf_model_tag", training.backbone)) from error
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(backbone.model_type)
    if architecture is None:
        raise ValueError(
            f"{CONFIG_FILE}: transformer_conf.hf_model_tag must be a decoder, "
            f"not {backbone.model_type!r}"
        )
    values = backbone.to_dict() | {
        "architectures": [architecture],
        "vocab_size": training.vocabulary_size,
        "max_position_embeddings": training.num_positions,
        "tie_word_embeddings": training.is_tied,
        # In the backbone's own ids, of which none is the model's.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    tensors = EspnetCheckpoint(weights).tensors
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
    return {
        "architectures": ["OpusLMForConditionalGeneration"],
        "model_type": "opuslm",
        "backbone_config": values,
        "codec": CODEC_FOLDER,
        "dtype": str(dtype).removeprefix("torch."),
        **{
            name: value
            for name, value in dataclasses.asdict(training).items()
            if name not in ("backbone", "tokenizer", "num_positions", "is_tied")
        },
    }


def _write(folder: Path, training: OpusLMTraining, config: dict[str, Any]) -> None:
    begin, end = training.text
    try:
        write_shifted_tokenizer(training.tokenizer, begin, end - begin, folder)
    except OSError as error:
        raise ValueError(_not_found("subword_model", training.tokenizer)) from error
    _write_json(folder / ENGINE_CONFIG_FILE, config)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _not_found(setting: str, name: str) -> str:
    return (
        f"{CONFIG_FILE}: {setting}, {name!r}, must be a folder, or a hub id that is in the cache "
        "or can be downloaded"
    )


@cache
def downloaded_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub id of ESPnet's whose repository holds an OpusLM; None for any other name.

    Raises:
        ValueError: if its files cannot be downloaded.
    """
    if not _HUB_ID.fullmatch(name):
        return None
    return published_repository(name, revision, CONFIG_FILE, "*.pth", is_opuslm)
