# SPDX-License-Identifier: Apache-2.0
"""Small random MusicGen models, written by transformers as it publishes them."""

import functools
import json
import string
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EncodecConfig,
    GenerationConfig,
    MusicgenConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
    T5Tokenizer,
)

from vllm.unison.testing.random_codec import scale_codec

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


def _with_random_vectors(model: Any) -> Any:
    """Norms and biases are born as ones and zeros, which would hide where they go, and the codec's
    codebooks as zeros, so that all codes would sound alike."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    scale_codec(model.audio_encoder, "encodec")
    return model


def tiny_musicgen(melody: bool = False, channels: int = 1, seed: int = 0, **decoder: Any) -> Any:
    """A random model in float32 and eval mode, with the published generation settings."""
    kind = MusicgenMelodyForConditionalGeneration if melody else MusicgenForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _with_random_vectors(kind(tiny_config(melody, channels, **decoder)).eval())
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


def register_architecture(patch: Any) -> None:
    """Let an engine be configured for MusicGen, without its model being looked at.

    Args:
        patch: a pytest.MonkeyPatch.
    """
    from vllm import ModelRegistry

    known = dict(ModelRegistry.models)
    for kind in ("Musicgen", "MusicgenMelody"):
        known[f"{kind}ForConditionalGeneration"] = known["SpeechLMForConditionalGeneration"]
    patch.setattr(ModelRegistry, "models", known)


SAMPLE_RATE = 8000
FRAMES_PER_SECOND = 50
CHROMA_LENGTH = 21
MELODY: dict[str, Any] = {
    "feature_extractor_type": "MusicgenMelodyFeatureExtractor", "feature_size": 12,
    "sampling_rate": SAMPLE_RATE, "n_fft": 2048, "hop_length": 512, "chunk_length": 30,
}  # fmt: skip
"""preprocessor_config.json of a model with melodies."""
WORDS = ("lo", "fi", "beat", "warm", "piano", "drums", "noise", "jazz", "rock", "slow")


def t5_tokenizer() -> T5Tokenizer:
    """A tokenizer of T5's kind: whole words of WORDS, letters, and an end token after each text."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *(f"\u2581{word}" for word in WORDS)]
    pieces += [*string.ascii_letters, *string.digits, *".,-'!?"]
    vocabulary = [(piece, -float(rank > 2) * rank) for rank, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def write_musicgen(
    folder: str | Path,
    *,
    stereo: bool = False,
    melody: bool = False,
    audiogen: bool = False,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    codebook_size: int = 64,
    text_width: int = 24,
    max_positions: int = 256,
    seed: int = 0,
    **generation: Any,
) -> Any:
    """Save a random model as it is published, with its tokenizer.

    The sizes are ones that an engine on the CPU takes. The codec has 50 frames a second at 8 kHz.

    Args:
        folder: is made if it is not there.
        stereo: 8 streams for two channels instead of 4 for one.
        melody: a model with a prefix of CHROMA_LENGTH positions of a melody, as MELODY says.
        audiogen: a codec at 16 kHz, built as AudioGen's is but for its widths.
        hidden_size, num_layers, num_heads, codebook_size, max_positions: of the decoder.
        text_width: of the text encoder; there is a projection if it is not the hidden size.
        seed: of the weights.
        generation: fields of generation_config.json besides do_sample, guidance_scale (3.0) and
            max_length (as many positions as there are).

    Returns:
        The model, which is made once for its sizes and must not be changed.
    """
    folder = Path(folder)
    model = _published_model(
        stereo,
        melody,
        audiogen,
        hidden_size,
        num_layers,
        num_heads,
        codebook_size,
        text_width,
        max_positions,
        seed,
    )
    model.save_pretrained(folder)
    if melody:
        # transformers writes it with torchaudio only.
        (folder / "preprocessor_config.json").write_text(json.dumps(MELODY))
    t5_tokenizer().save_pretrained(folder)
    settings = {"max_length": max_positions, "guidance_scale": 3.0, "do_sample": True}
    ids = ("pad_token_id", "bos_token_id", "decoder_start_token_id")
    named = {**settings, **dict.fromkeys(ids, codebook_size), **generation}
    GenerationConfig(**named).save_pretrained(folder)
    return model


@functools.cache
def _published_model(
    stereo: bool,
    melody: bool,
    audiogen: bool,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    codebook_size: int,
    text_width: int,
    max_positions: int,
    seed: int,
) -> Any:
    channels = 2 if stereo else 1
    text = T5Config(
        vocab_size=len(t5_tokenizer()), d_model=text_width, d_kv=8, d_ff=48, num_layers=2,
        num_heads=3,
    )  # fmt: skip
    bits = codebook_size.bit_length() - 1
    own: dict[str, Any] = {
        "sampling_rate": SAMPLE_RATE, "upsampling_ratios": [8, 5, 4], "num_lstm_layers": 1,
    }  # fmt: skip
    if audiogen:
        own = {
            "sampling_rate": 16000, "upsampling_ratios": [8, 5, 4, 2], "num_lstm_layers": 2,
            "pad_mode": "constant", "use_conv_shortcut": False,
        }  # fmt: skip
    codec = EncodecConfig(
        num_filters=4, hidden_size=8, codebook_size=codebook_size, use_causal_conv=False,
        target_bandwidths=[4 * bits * FRAMES_PER_SECOND / 1000], **own,
    )  # fmt: skip
    decoder = {
        "vocab_size": codebook_size, "hidden_size": hidden_size, "ffn_dim": 4 * hidden_size,
        "num_hidden_layers": num_layers, "num_attention_heads": num_heads,
        "num_codebooks": 4 * channels, "audio_channels": channels, "pad_token_id": codebook_size,
        "bos_token_id": codebook_size, "max_position_embeddings": max_positions,
    }  # fmt: skip
    parts = {"text_encoder": text.to_dict(), "audio_encoder": codec.to_dict(), "decoder": decoder}
    config: Any
    kind: Any
    if melody:
        config = MusicgenMelodyConfig(**parts, num_chroma=12, chroma_length=CHROMA_LENGTH)
        kind = MusicgenMelodyForConditionalGeneration
    else:
        config, kind = MusicgenConfig(**parts), MusicgenForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).eval()
        return _with_strong_layers(_with_random_vectors(model))


def _with_strong_layers(model: Any) -> Any:
    """Layers are born so weak that codes follow from the last frame alone, whatever the text."""
    for name, parameter in model.named_parameters():
        if ".layers." in name and name.startswith("decoder.") and parameter.ndim == 2:
            parameter.data *= 6
        if name.startswith("enc_to_dec_proj.weight"):
            parameter.data *= 20
        if name.startswith("audio_enc_to_dec_proj.weight"):
            parameter.data *= 4
    return model
