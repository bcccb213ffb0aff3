# SPDX-License-Identifier: Apache-2.0
"""Small SpeechLM checkpoints with random weights, in exactly the published format.

For tests, benchmarks and demonstrations without a trained model: all is real but the weights.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from vllm.unison.testing.random_codec import write_random_codec

PAD, END_TOKEN, BEGIN_AUDIO, BEGIN_TEXT, END_TEXT, SPEAKER = range(6)
FIRST_TEXT = 16
NUM_TEXT = 256
FIRST_CODE = FIRST_TEXT + NUM_TEXT
_SPECIALS = ("<pad>", "<end>", "<audio>", "<text>", "<end_of_text>", "<speaker>")

BACKBONES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@contextmanager
def beside_engines(backbone: PretrainedConfig) -> Iterator[None]:
    """A model of transformers can be made here, even in a process that has had an engine.

    An engine whose backbone is transformers' own changes its class for good: from then on it asks
    for the engine's configuration wherever it is made.

    Args:
        backbone: the model's configuration.
    """
    # Not needed by those who read no more than the layouts.
    from vllm.config import (
        CompilationConfig,
        CompilationMode,
        VllmConfig,
        set_current_vllm_config,
    )

    config = VllmConfig(compilation_config=CompilationConfig(mode=CompilationMode.NONE))
    # All that the changed class reads of it.
    config.model_config = SimpleNamespace(hf_config=backbone)  # type: ignore[assignment]
    with set_current_vllm_config(config):
        yield


def stream_layout(
    num_streams: int,
    delays: Sequence[int] | None = None,
    codebook_size: int = 64,
    text_then_audio: bool = False,
    delay_scope: str = "segment",
) -> dict[str, Any]:
    """The `stream_layout` object of a random checkpoint.

    Ids: specials below 16, 256 byte-level text ids, then one slice of `codebook_size` per stream.

    Args:
        num_streams: K, at least 1.
        delays: default 0, 1, ..., K - 1.
        codebook_size: codes per stream.
        text_then_audio: whether the end of text leads to audio by forced tokens, or ends a request.
        delay_scope: see DelayScope.
    """
    end = {"token": END_TOKEN, "to": "end"}
    to_audio = {"token": END_TEXT, "to": "audio", "forced": [SPEAKER, BEGIN_AUDIO]}
    return {
        "delays": list(range(num_streams) if delays is None else delays),
        "vocabulary_size": FIRST_CODE + num_streams * codebook_size,
        "slices": [
            [FIRST_CODE + k * codebook_size, FIRST_CODE + (k + 1) * codebook_size]
            for k in range(num_streams)
        ],
        "pad_token_ids": PAD,
        "text_slice": [FIRST_TEXT, FIRST_TEXT + NUM_TEXT],
        "delay_scope": delay_scope,
        "phases": [
            {
                "name": "text",
                "kind": "text",
                "begin_tokens": [BEGIN_TEXT],
                "transitions": [end, to_audio] if text_then_audio else [end],
            },
            {
                "name": "audio",
                "kind": "audio",
                "begin_tokens": [BEGIN_AUDIO],
                "transitions": [end],
            },
        ],
    }


def default_tasks() -> dict[str, list[int | str]]:
    """Task prompts of a random checkpoint."""
    return {
        "text_to_speech": [BEGIN_TEXT, "text", BEGIN_AUDIO],
        "speech_to_text": [BEGIN_AUDIO, "audio", BEGIN_TEXT],
        "voice_prompted_speech": [SPEAKER, "audio", BEGIN_TEXT, "text", BEGIN_AUDIO],
    }


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer in the model's own ids, text from FIRST_TEXT on."""
    vocabulary = {token: index for index, token in enumerate(_SPECIALS)}
    vocabulary |= {f"<reserved_{i}>": i for i in range(len(_SPECIALS), FIRST_TEXT)}
    specials = list(vocabulary)
    for offset, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())):
        vocabulary[character] = FIRST_TEXT + offset
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def write_random_speech_lm(
    folder: str | Path,
    backbone: str = "llama",
    num_streams: int = 4,
    *,
    seed: int = 0,
    layout: Mapping[str, Any] | None = None,
    codec: str | None = "dac",
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 2,
    num_key_value_heads: int = 1,
    max_positions: int = 2048,
    tied: bool = False,
    head_offsets: bool = True,
    embedding: Mapping[str, Any] | None = None,
    guidance: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    initializer_range: float = 0.4,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint: config.json, model.safetensors, tokenizer and the codec's folder.

    Args:
        folder: made if missing.
        backbone: one of BACKBONES.
        num_streams: K; ignored where `layout` is given.
        seed: of all weights.
        layout: default `stream_layout(num_streams, codebook_size=64)`.
        codec: a kind that write_random_codec knows, or None.
        hidden_size, num_layers, num_heads, num_key_value_heads, max_positions: of the backbone.
        tied: whether the head shares the embedding's weight.
        head_offsets: whether to add a vector per stream before the head.
        embedding: the `embedding` object of config.json; default: pads add nothing on streams 1..
        guidance: the `guidance` object of config.json; default: a constant null prompt.
        dtype: of the weights.
        initializer_range: standard deviation of the weights; large enough that logits differ.
        more: further fields of config.json, or others for those above.

    Returns:
        The folder.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone must be one of {sorted(BACKBONES)}, not {backbone!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layout = dict(layout or stream_layout(num_streams))
    streams = len(layout["delays"])
    config = CONFIG_MAPPING[backbone](
        vocab_size=layout["vocabulary_size"],
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=END_TOKEN,
    )
    with torch.random.fork_rng(devices=[]), beside_engines(config):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        offsets = torch.randn(streams, hidden_size) * initializer_range
    weights = {
        f"backbone.{name}": weight.to(dtype).contiguous()
        for name, weight in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    if head_offsets:
        offsets[0] = 0
        weights["head_offsets"] = offsets.to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    backbone_config = config.to_diff_dict() | {
        "model_type": backbone,
        "architectures": [BACKBONES[backbone]],
    }
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["SpeechLMForConditionalGeneration"],
                "model_type": "speech_lm",
                "dtype": str(dtype).removeprefix("torch."),
                "backbone_config": backbone_config,
                "stream_layout": layout,
                "embedding": embedding or {"auxiliary_skip_ids": [PAD]},
                "head_offsets": head_offsets,
                "codec": None if codec is None else {"name_or_path": "codec"},
                "tasks": default_tasks(),
                "guidance": guidance or {"null_prompt": [BEGIN_AUDIO], "audio_only": False},
                **(more or {}),
            },
            indent=2,
        )
    )
    byte_tokenizer().save_pretrained(folder)
    if codec is not None:
        begin, end = layout["slices"][-1]
        write_random_codec(
            folder / "codec", codec, seed=seed, **_codec_size(codec, streams, end - begin)
        )
    return folder


def _codec_size(codec: str, num_codebooks: int, codebook_size: int) -> dict[str, Any]:
    if codec == "dac":
        return {"n_codebooks": num_codebooks, "codebook_size": codebook_size}
    return {}
