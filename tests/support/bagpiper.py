# SPDX-License-Identifier: Apache-2.0
"""Small random Bagpiper models, in the container and under the names that ESPnet publishes.

Weights are drawn by NumPy, whose generators give the same numbers in all releases: ESPnet's own
classes have run on them in another environment (see tests/references/bagpiper).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    WhisperFeatureExtractor,
    XcodecConfig,
    XcodecModel,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoderConfig,
    Qwen3OmniMoeConfig,
)
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

NUM_SPECIALS, TEXT_VOCABULARY, CODEBOOK_SIZE, NUM_CODEBOOKS = 256, 272, 16, 8
FIRST_TEXT = NUM_SPECIALS
FIRST_CODE = FIRST_TEXT + TEXT_VOCABULARY
VOCABULARY = FIRST_CODE + NUM_CODEBOOKS * (CODEBOOK_SIZE + 1)
HIDDEN = 32
SAMPLE_RATE = 16000

MODEL, AUDIO_ENCODER, CODEC = "qwen3", "qwen3-omni", "xcodec"
TRAIN_FILE, DECODING_FILE, WEIGHTS_FILE = "train_bagpiper_tts.yaml", "inference.yaml", "model.pt"

DECODING = {
    "text": {"temperature": 0.6, "topk": 20, "cfg": 1, "max_step": 120, "min_step": 1},
    "audio": {"temperature": 0.8, "topk": 20, "cfg": 3, "max_step": 60, "min_step": 14},
}


def backbone_config() -> Qwen3Config:
    """Of the model that a Bagpiper was made from: its vocabulary is the text's."""
    return Qwen3Config(
        vocab_size=TEXT_VOCABULARY, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False,
        architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip


def audio_encoder_config() -> Qwen3OmniMoeAudioEncoderConfig:
    """Of the audio encoder."""
    return Qwen3OmniMoeAudioEncoderConfig(
        num_mel_bins=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24,
        d_model=16, output_dim=20, n_window=50, n_window_infer=200, downsample_hidden_size=4,
        max_source_positions=1500,
    )  # fmt: skip


def omni_config() -> Qwen3OmniMoeConfig:
    """Of the model that the audio encoder is a part of; nothing else of it is read."""
    return Qwen3OmniMoeConfig(thinker_config={"audio_config": audio_encoder_config().to_dict()})


def codec_config() -> XcodecConfig:
    """Of the codec."""
    return XcodecConfig(
        codebook_size=CODEBOOK_SIZE,
        # Codebooks of 4 bits, 50 times a second.
        target_bandwidths=[0.2 * NUM_CODEBOOKS],
        acoustic_model_config={
            "model_type": "dac", "encoder_hidden_size": 4, "decoder_hidden_size": 32,
            "hidden_size": 16,
        },
        semantic_model_config={
            "model_type": "hubert", "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [16] * 7,
            "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "layerdrop": 0.0,
        },
    )  # fmt: skip


def feature_extractor() -> WhisperFeatureExtractor:
    """What makes features of audio for the encoder."""
    return WhisperFeatureExtractor(
        feature_size=audio_encoder_config().num_mel_bins, sampling_rate=SAMPLE_RATE
    )


def text_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; as in Qwen's, id 0 is "!"."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert letters[0] == "!"
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def ids_of(text: str) -> list[int]:
    """A text's ids in a prompt, as training made them: an id 0 of the tokenizer is the pad."""
    ids = text_tokenizer().encode(text, add_special_tokens=False)
    return [index + FIRST_TEXT if index else 0 for index in ids]


def bagpiper_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """All tensors under ESPnet's names, float32.

    Rows of the head for the two ids that end a turn are large, so that greedy text and audio end.
    """
    whole = backbone_config()
    whole.vocab_size = VOCABULARY
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "": Qwen3ForCausalLM(whole),
            "multimodal_io_dict.discrete_audio.codec_model.": XcodecModel(codec_config()),
            "multimodal_io_dict.continuous_audio.model.audio_tower.": Qwen3OmniMoeAudioEncoder(
                audio_encoder_config()
            ),
        }
    shapes = {
        prefix + name: tensor.shape
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    shapes["stream_emb.weight"] = (NUM_CODEBOOKS, HIDDEN)
    shapes["adaptor.continuous_audio.weight"] = (HIDDEN, audio_encoder_config().output_dim)
    shapes["adaptor.continuous_audio.bias"] = (HIDDEN,)
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        drawn = random.standard_normal(tuple(shape))
        tensors[name] = torch.from_numpy((_center(name) + _scale(name, shape) * drawn).astype("f4"))
    tensors["lm_head.weight"][2:4] *= 1.8
    return tensors


def _center(name: str) -> float:
    """Norms, and magnitudes of weights that are normed, are around 1."""
    is_norm = "norm" in name and name.endswith("weight")
    return 1.0 if is_norm or name.endswith(("original0", "alpha")) else 0.0


def _scale(name: str, shape: Any) -> float:
    if _center(name) or name.endswith("bias"):
        return 0.1
    if "codec_model" in name:
        return 1.0 if "codebook" in name else 0.5 * float(np.prod(shape[1:])) ** -0.5
    if "adaptor" in name:
        return 6.0 * float(np.prod(shape[1:])) ** -0.5
    if "audio_tower" in name:
        return 1.5 * float(np.prod(shape[1:])) ** -0.5
    return 0.4


def write_bagpiper(
    folder: Path,
    sources: Path,
    *,
    seed: int = 0,
    weights_file: str = WEIGHTS_FILE,
    change: Any = None,
    decoding: dict[str, Any] | None = DECODING,
    training: dict[str, Any] | None = None,
) -> Path:
    """Write a model as it is published, and what it was made from; returns the former's folder.

    Args:
        folder: of the model.
        sources: where the folders of the backbone, the codec and the audio encoder go.
        seed: of the weights.
        weights_file: its name.
        change: called with the tensors by name before they are saved.
        decoding: settings of inference; None: no file has any.
        training: settings of training in the place of `train_settings`.
    """
    write_sources(sources)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Any] = bagpiper_tensors(seed)
    tensors["vocab_weight"] = torch.ones(VOCABULARY)
    if change is not None:
        change(tensors)
    torch.save({"module": tensors}, folder / weights_file)
    settings = train_settings(sources) if training is None else training
    (folder / TRAIN_FILE).write_text(yaml.safe_dump(settings, sort_keys=False))
    if decoding is not None:
        inference = {"dtype": "float32", "enforce_modality": ["text", "audio"], **decoding}
        (folder / DECODING_FILE).write_text(yaml.safe_dump(inference, sort_keys=False))
    return folder


def write_sources(sources: Path) -> None:
    """Folders of what a model was made from: configurations and a tokenizer, no weights."""
    backbone_config().save_pretrained(sources / MODEL)
    text_tokenizer().save_pretrained(sources / MODEL)
    codec_config().save_pretrained(sources / CODEC)
    omni_config().save_pretrained(sources / AUDIO_ENCODER)
    feature_extractor().save_pretrained(sources / AUDIO_ENCODER)


def train_settings(sources: Path) -> dict[str, Any]:
    """The settings of training, of which the engine reads a few."""
    return {
        "job_type": "speechlm",
        "multimodal_io": {
            "text": {"tokenizer_name": str(sources / MODEL)},
            "discrete_audio": {
                "codec_choice": "Xcodec",
                "codec_hf_model_tag": str(sources / CODEC),
                "ssl_choice": None,
                "ssl_hf_model_tag": None,
                "delay_interleave": True,
                "stream_weights": [0.125] * NUM_CODEBOOKS,
            },
            "continuous_audio": {
                "encoder_choice": "huggingface",
                "encoder_hf_model_tag": str(sources / AUDIO_ENCODER),
                "attn_implementation": "flash_attention_3",
                "dtype": "bfloat16",
            },
        },
        "model": {
            "model_choice": "parallel",
            "model_hf_tag": str(sources / MODEL),
            "model_conf": {"attn_implementation": "flash_attention_3", "dtype": "float32"},
        },
        "preprocessor": {
            "audio_input": "continuous_audio",
            "audio_output": "discrete_audio",
            "loss_region": "assistant",
            "audio_cfg": 0.1,
        },
        "data_loading": {"batchfy_method": "pack", "batch_size": 8192, "num_workers": 6},
        "trainer": {"type": "titan", "max_step": 50000},
    }


def clip() -> NDArray[np.float32]:
    """A clip of noise, not whole frames or chunks long."""
    noise = np.random.default_rng(7).standard_normal(27003)
    return (0.1 * noise).astype(np.float32)


if __name__ == "__main__":
    # For the environment of the reference run: the model's folder, and its sources' beside it.
    place = Path(sys.argv[1])
    write_bagpiper(place / "model", place / "sources")
    np.save(place / "clip.npy", clip())
