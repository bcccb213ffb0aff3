# SPDX-License-Identifier: Apache-2.0
"""Writes the trained parts as a SpeechLM checkpoint.

    python examples/train_default_model/export.py --folder build/default_model

Works at any time: what is written is the running mean of the weights at the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import layout
import torch
from model import CONFIG, num_layers
from pronunciation import lexicon_file
from refine_decoder import refined
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from vllm.unison.codecs.spectral_codec import SpectralCodecModel

SPEECH_DEFAULTS = {"temperature": 0.0, "top_k": 20, "max_tokens": 500}
GUIDANCE_SCALE = 1.5

GENERATION_DEFAULTS = {
    "text_to_speech": {**SPEECH_DEFAULTS, "guidance_scale": GUIDANCE_SCALE},
    "speech_to_text": {"temperature": 0.0, "max_tokens": 200},
    "speech_continuation": SPEECH_DEFAULTS,
}


def export(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write config, weights in half the bytes, tokenizer, lexicon, codec and generation defaults.

    Args:
        folder: of the training.
        dtype: of the language model.

    Returns:
        The checkpoint's folder.
    """
    target = folder / "unison-default"
    target.mkdir(parents=True, exist_ok=True)
    state = torch.load(folder / "language_model_checkpoint.pt")
    weights = {name: weight.to(dtype).contiguous() for name, weight in state["mean"].items()}
    metadata = {"format": "pt", "step": str(state["step"])}
    save_file(weights, target / "model.safetensors", metadata=metadata)
    # bfloat16 would cost the codec's inverse Fourier transform audible precision.
    SpectralCodecModel.load(refined(folder)).save(target / "codec", torch.float16)
    backbone = CONFIG.to_diff_dict() | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": num_layers(weights),
    }
    config = {
        "architectures": ["SpeechLMForConditionalGeneration"],
        "model_type": "speech_lm",
        "dtype": str(dtype).removeprefix("torch."),
        "backbone_config": backbone,
        "stream_layout": layout.stream_layout(),
        "embedding": {"auxiliary_skip_ids": [layout.PAD]},
        "head_offsets": True,
        "codec": {"name_or_path": "codec"},
        "tasks": layout.tasks(),
        "voices": {speaker: [index] for speaker, index in layout.SPEAKER_IDS.items()},
        "default_voice": layout.SPEAKERS[0],
        "languages": ["en"],
        "text_frontend": {"language": "en", "lexicon": lexicon_file(folder).name},
        "generation_defaults": GENERATION_DEFAULTS,
        "guidance": {"null_prompt": layout.NULL_PROMPT, "audio_only": False},
    }
    _write(target / "config.json", config)
    shutil.copyfile(lexicon_file(folder), target / lexicon_file(folder).name)
    named = {"max_new_tokens" if k == "max_tokens" else k: v for k, v in SPEECH_DEFAULTS.items()}
    _write(target / "generation_config.json", {"do_sample": True, **named})
    PreTrainedTokenizerFast(
        tokenizer_object=layout.make_tokenizer(), pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(target)
    return target


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    print(export(parser.parse_args().folder))


if __name__ == "__main__":
    main()
