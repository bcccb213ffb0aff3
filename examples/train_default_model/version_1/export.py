# SPDX-License-Identifier: Apache-2.0
"""Writes the trained parts as a SpeechLM checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import layout
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from train_language_model import CONFIG, StreamLanguageModel
from transformers import PreTrainedTokenizerFast

from vllm.unison.codecs.spectral_codec import SpectralCodecModel

SPEECH_DEFAULTS = {"temperature": 0.0, "top_k": 20, "max_tokens": 500}
GUIDANCE_SCALE = 1.5
"""What evaluate.py found best."""

GENERATION_DEFAULTS = {
    "text_to_speech": {**SPEECH_DEFAULTS, "guidance_scale": GUIDANCE_SCALE},
    "speech_to_text": {"temperature": 0.0, "max_tokens": 100},
    "speech_continuation": SPEECH_DEFAULTS,
}


def export(
    language_model: StreamLanguageModel,
    codec: SpectralCodecModel,
    tokenizer: Tokenizer,
    folder: Path,
) -> None:
    """Write config, weights in half the bytes, tokenizer, codec and generation defaults.

    Args:
        language_model, codec, tokenizer: the trained parts.
        folder: made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: weight.detach().to(torch.bfloat16).contiguous()
        for name, weight in language_model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # bfloat16 would cost the codec's inverse Fourier transform audible precision.
    codec.save(folder / "codec", torch.float16)
    backbone = CONFIG.to_diff_dict() | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
    }
    config = {
        "architectures": ["SpeechLMForConditionalGeneration"],
        "model_type": "speech_lm",
        "dtype": "bfloat16",
        "backbone_config": backbone,
        "stream_layout": layout.stream_layout(),
        "embedding": {"auxiliary_skip_ids": [layout.PAD]},
        "head_offsets": True,
        "codec": {"name_or_path": "codec"},
        "tasks": layout.tasks(),
        "voices": {speaker: [index] for speaker, index in layout.SPEAKER_IDS.items()},
        "default_voice": "rms",
        "generation_defaults": GENERATION_DEFAULTS,
        "guidance": {"null_prompt": layout.NULL_PROMPT, "audio_only": False},
    }
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"do_sample": True, **SPEECH_DEFAULTS})
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(folder)


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
