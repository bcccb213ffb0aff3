# SPDX-License-Identifier: Apache-2.0
"""Small random MusicGen models, written by transformers as it publishes them."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
)

CODEBOOK_SIZE = 16
TEXT_VOCABULARY = 50


def tiny_config(melody: bool = False, channels: int = 1, **decoder: Any) -> Any:
    """A MusicgenConfig or MusicgenMelodyConfig of the smallest useful sizes."""
    text = T5Config(
        vocab_size=TEXT_VOCABULARY, d_model=12, d_kv=4, d_ff=24, num_layers=2, num_heads=3,
        dropout_rate=0.1,
    )  # fmt: skip
    # 4 codebooks of 4 bits at 50 frames a second.
    codec = EncodecConfig(
        sampling_rate=400, upsampling_ratios=[4, 2], num_filters=4, hidden_size=8,
        codebook_size=CODEBOOK_SIZE, target_bandwidths=[0.8], use_causal_conv=False,
        num_lstm_layers=1,
    )  # fmt: skip
    settings = {
        "vocab_size": CODEBOOK_SIZE, "hidden_size": 16, "ffn_dim": 40, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_codebooks": 4 * channels, "audio_channels": channels,
        "pad_token_id": CODEBOOK_SIZE, "bos_token_id": CODEBOOK_SIZE,
        "max_position_embeddings": 64, **decoder,
    }  # fmt: skip
    parts = {"text_encoder": text.to_dict(), "audio_encoder": codec.to_dict(), "decoder": settings}
    if melody:
        return MusicgenMelodyConfig(**parts, num_chroma=12, chroma_length=7)
    return MusicgenConfig(**parts)


def tiny_musicgen(melody: bool = False, channels: int = 1, seed: int = 0, **decoder: Any) -> Any:
    """A random model in float32 and eval mode, with the published generation settings."""
    kind = MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(tiny_config(melody, channels, **decoder)).eval()
        # Norms and biases are born as ones and zeros, which would hide where they go.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    settings = model.generation_config
    settings.do_sample, settings.guidance_scale, settings.max_length = True, 3.0, 60
    settings.pad_token_id = settings.decoder_start_token_id = CODEBOOK_SIZE
    settings.bos_token_id = CODEBOOK_SIZE
    return model


def write_tiny_musicgen(folder: Path, **kwargs: Any) -> Any:
    """Save one as it is published; returns the model."""
    model = tiny_musicgen(**kwargs)
    model.save_pretrained(folder)
    return model
