# SPDX-License-Identifier: Apache-2.0
"""Small random OpusLM models, in the files and under the names that ESPnet publishes them.

Beside them, the same tensors as a SpeechLM checkpoint whose layout is written out here, for the
reference of tests/engine/streams. This module shares no code with vllm.unison.formats.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.espnet_dac import GENERATOR, write_espnet_dac
from vllm.unison.testing.random_checkpoint import beside_engines

NUM_STREAMS, NUM_UNITS, NUM_CODES, NUM_PHONES = 9, 40, 16, 7
FIRST_UNIT = 256
FIRST_CODE = FIRST_UNIT + NUM_UNITS
FIRST_TEXT = FIRST_CODE + 8 * NUM_CODES
NUM_TEXT = 264
"""Rows of the backbone's embedding; its tokenizer has a few ids less, as OLMo-2's has."""
VOCABULARY = FIRST_TEXT + NUM_TEXT + NUM_PHONES
SPEAKER_FRAMES = 12

PAD, END, END_OF_UTTERANCE, SYSTEM, USER, ASSISTANT = 0, 5, 11, 8, 9, 10
BEGIN_AUDIO, BEGIN_TEXT, BEGIN_SPEAKER = 34, 35, 37
TEXT_LM, ASR, CLONED_TTS, TTS, AUDIO_LM, TEXT_DIALOGUE, AUDIO_DIALOGUE = 64, 80, 81, 82, 83, 88, 89

_SPECIAL = {
    0: "<pad>",
    1: "<unk>",
    5: "<sos/eos>",
    8: "<system_prompt>",
    9: "<user_input>",
    10: "<assistant_output>",
    11: "<eou>",
    34: "<codec_ssl_start/end>",
    35: "<text_bpe_start/end>",
    37: "<spk_start/end>",
    64: "<textlm_task>",
    80: "<codec_ssl_asr_task>",
    81: "<codec_ssl_tts_task>",
    82: "<codec_ssl_plain_tts_task>",
    83: "<codec_ssl_audiolm_task>",
    88: "<text_dialogue_task>",
    89: "<audio_dialogue_task>",
}

BACKBONES: dict[str, dict[str, Any]] = {
    "olmo2": {"num_key_value_heads": 2},
    "llama": {"num_key_value_heads": 1},
}


def token_list() -> list[str]:
    """The names of all tokens."""
    special = [_SPECIAL.get(i, f"<unused_token_{i}>") for i in range(FIRST_UNIT)]
    units = [f"<ssl_code{i + 1}>" for i in range(NUM_UNITS)]
    codes = [f"<codec_layer{k}_code{i}>" for k in range(8) for i in range(NUM_CODES)]
    text = sorted(_vocabulary(), key=_vocabulary().__getitem__)
    text += [f"<padding_{i}>" for i in range(NUM_TEXT - len(text))]
    phones = [f"g2p_{i}" for i in range(NUM_PHONES)]
    return special + units + codes + text + phones


def _vocabulary() -> dict[str, int]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = {"he": 256, "lo": 257, "<|endoftext|>": 258}
    return {character: index for index, character in enumerate(alphabet)} | merged


def write_tokenizer(folder: Path) -> None:
    """The text's tokenizer, in its own ids."""
    vocabulary = _vocabulary()
    vocabulary.pop("<|endoftext|>")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e"), ("l", "o")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        folder
    )


def text_ids(text: str) -> list[int]:
    """A text's ids in the model, of characters that no merge touches."""
    assert "he" not in text and "lo" not in text
    vocabulary = _vocabulary()
    return [FIRST_TEXT + vocabulary["\u0120" if c == " " else c] for c in text]


def settings(backbone: str, tokenizer: str, **changes: Any) -> dict[str, Any]:
    """What config.yaml holds, as ESPnet writes it."""
    text_end = FIRST_TEXT + NUM_TEXT
    return {
        "config": "conf/train.yaml",
        "use_deepspeed": True,
        "ds_config_dict": {"bf16": {"enabled": True}},
        "token_list": token_list(),
        "token_bias": {
            "ssl": [FIRST_UNIT, FIRST_CODE],
            "codec": [FIRST_CODE, FIRST_TEXT],
            "text_bpe": [FIRST_TEXT, text_end],
            "g2p": [text_end, VOCABULARY],
            "special_token": [0, FIRST_UNIT],
        },
        "encoder_decoder_format": False,
        "speaker_prompt_length": SPEAKER_FRAMES,
        "pad_speaker_prompt": True,
        "subword_choice": "huggingface",
        "subword_model": tokenizer,
        "cleaner": None,
        "codec_token_per_frame": NUM_STREAMS,
        "codec_token_in_use": NUM_STREAMS,
        "transformer": "huggingface",
        "transformer_conf": {"hf_model_tag": backbone, "attention_choice": "sdpa", "n_ctx": 512},
        "corelm": "ar_delay",
        "corelm_conf": {"share_emb": False},
        "model": "espnet",
        **changes,
    }


def tensors(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under ESPnet's names, with the loss's copy of the head among them.

    The end, and what the streams may carry after it, come more often than by chance.
    """
    config = backbone_config(kind, VOCABULARY)
    with beside_engines(config), torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.4) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=random)

    hidden = config.hidden_size
    found = {"corelm.emb.weight": draw(VOCABULARY, hidden)}
    for name, weight in shapes.items():
        if name.startswith("model.") and "embed_tokens" not in name:
            is_norm = weight.ndim == 1
            value = 1 + draw(*weight.shape, scale=0.1) if is_norm else draw(*weight.shape)
            found["corelm.decoders." + name] = value
    head = draw(VOCABULARY, hidden)
    head[END] *= 1.5
    head[END_OF_UTTERANCE] *= 1.8
    head[PAD] *= 1.3
    found |= {
        "corelm.lm_head.weight": head,
        "corelm.head_emb.weight": draw(12, hidden, scale=0.3),
        "criterion.lm_head.weight": head.clone(),
    }
    found["corelm.emb.weight"][PAD] = 0
    return found


def backbone_config(kind: str, vocabulary_size: int = NUM_TEXT) -> Any:
    """The backbone's own configuration, by default with the text's vocabulary alone."""
    return CONFIG_MAPPING[kind](
        vocab_size=vocabulary_size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **BACKBONES[kind],
    )


def write_opuslm(
    folder: Path, kind: str = "olmo2", *, seed: int = 0, file: str = "model.pth", **changes: Any
) -> Path:
    """Write the two files that ESPnet publishes, and the codec's in a folder beside them.

    Backbone and tokenizer lie beside the model's folder.

    Args:
        folder: made if missing.
        kind: one of BACKBONES.
        seed: of all weights.
        file: name of the weights.
        changes: settings of config.yaml that are others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone, tokenizer = folder.parent / f"{kind}_backbone", folder.parent / "tokenizer"
    backbone_config(kind).save_pretrained(backbone)
    write_tokenizer(tokenizer)
    values = settings(str(backbone), str(tokenizer), **changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    torch.save(tensors(kind, seed), folder / file)
    write_espnet_dac(folder / "codec", GENERATOR | {"quantizer_bins": NUM_CODES})
    return folder


def layout() -> dict[str, Any]:
    """The `stream_layout` of such a model."""
    end = {"token": END, "to": "end"}
    codes = [[FIRST_CODE + NUM_CODES * k, FIRST_CODE + NUM_CODES * (k + 1)] for k in range(8)]
    return {
        "delays": list(range(9)),
        "vocabulary_size": VOCABULARY,
        "slices": [[FIRST_UNIT, FIRST_CODE], *codes],
        "pad_token_ids": PAD,
        "text_slice": [FIRST_TEXT, FIRST_TEXT + NUM_TEXT],
        "codebook_streams": list(range(1, 9)),
        "delay_scope": "sequence",
        "outside_codebook": 0,
        "fills": {"tail": {"token_ids": [END] + [PAD] * 8, "sampled": True}},
        "phases": [
            {
                "name": "text",
                "kind": "text",
                "begin_tokens": [TEXT_LM, ASR],
                "transitions": [end],
            },
            {
                "name": "audio",
                "kind": "audio",
                "begin_tokens": [TTS, CLONED_TTS, AUDIO_LM],
                "transitions": [end],
                "end_rule": {"first_step": 3, "extra_steps": 1},
            },
            {
                "name": "turn",
                "kind": "text",
                "begin_tokens": [TEXT_DIALOGUE],
                "transitions": [end, {"token": END_OF_UTTERANCE, "to": "end"}],
            },
            {
                "name": "reply",
                "kind": "text",
                "begin_tokens": [AUDIO_DIALOGUE],
                "transitions": [
                    {"token": token, "to": "audio", "forced": [PAD] * 8 + [ASSISTANT, BEGIN_AUDIO]}
                    for token in (END, END_OF_UTTERANCE)
                ],
            },
        ],
    }


def write_speech_lm(folder: Path, kind: str = "olmo2", seed: int = 0) -> Path:
    """The same model as a SpeechLM checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    found = tensors(kind, seed)
    weights = {
        "backbone.model.embed_tokens.weight": found["corelm.emb.weight"],
        "backbone.lm_head.weight": found["corelm.lm_head.weight"],
        "head_offsets": found["corelm.head_emb.weight"][:NUM_STREAMS].clone(),
    }
    prefix = "corelm.decoders."
    weights |= {
        "backbone." + name.removeprefix(prefix): tensor
        for name, tensor in found.items()
        if name.startswith(prefix)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = backbone_config(kind, VOCABULARY)
    config.architectures = [{"olmo2": "Olmo2ForCausalLM", "llama": "LlamaForCausalLM"}[kind]]
    data = {
        "architectures": ["SpeechLMForConditionalGeneration"],
        "model_type": "speech_lm",
        "backbone_config": config.to_dict(),
        "stream_layout": layout(),
        "embedding": {"auxiliary_skip_ids": [PAD]},
        "head_offsets": True,
        "tasks": {},
        "codec": None,
    }
    (folder / "config.json").write_text(json.dumps(data))
    write_tokenizer(folder)
    return folder


def clip_codes(num_frames: int, seed: int) -> list[list[int]]:
    """A clip: units and codes [num_frames, 9]."""
    random = torch.Generator().manual_seed(seed)
    units = torch.randint(NUM_UNITS, (num_frames, 1), generator=random)
    codes = torch.randint(NUM_CODES, (num_frames, 8), generator=random)
    return torch.cat([units, codes], 1).tolist()


def clip_ids(num_frames: int, seed: int) -> list[list[int]]:
    """The same in ids."""
    first = [FIRST_UNIT, *(FIRST_CODE + k * NUM_CODES for k in range(8))]
    return [
        [a + b for a, b in zip(first, frame, strict=True)] for frame in clip_codes(num_frames, seed)
    ]
