# SPDX-License-Identifier: Apache-2.0
"""Runs ESPnet's own classes on a random Bagpiper model, and stores what they generate.

Run by bagpiper_espnet.sh in an environment that has the espnet package and not this one. The model
is that of tests/support/bagpiper.py, in a folder as it is published; ESPnet builds it from the
folder's YAML, loads its weights strictly, and decodes greedily in float32.

    bagpiper_espnet.py FOLDER SOURCES CLIP OUTPUT
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml

CASES: list[dict[str, Any]] = [
    {"task": "text_to_audio", "text_in": "say hello", "cfg": 3},
    {"task": "text_to_audio", "text_in": "a cat! meows", "cfg": 1},
    {"task": "text_to_audio", "text_in": "rain on a roof, then thunder", "cfg": 2.5},
    {"task": "text_to_text", "text_in": "what is a bagpipe?"},
    {"task": "caption_to_audio", "text_in": "bell", "cfg": 3},
    {"task": "any", "text_in": "hi", "cfg": 3},
    {"task": "any", "text_in": "y now", "cfg": 3},
    {"task": "any", "text_in": "a door", "cfg": 1},
    {"task": "audio_to_text"},
    {"task": "audio_and_text_to_text", "text_in": "who speaks?"},
    {
        "task": "text_to_audio",
        "messages": [["system", "text", "think!"], ["user", "text", "a gong"]],
        "cfg": 3,
    },
    {
        "task": "text_to_text",
        "messages": [
            ["system", "text", "be brief"],
            ["system", "text", "be kind!"],
            ["user", "text", "one more"],
            ["user", "text", "and now?"],
        ],
    },
    {
        "task": "audio_and_text_to_text",
        "messages": [
            ["system", "text", "listen"],
            ["user", "audio", ""],
            ["user", "text", "what is it?"],
        ],
    },
    {"task": "audio_to_text", "messages": [["system", "text", "listen!"], ["user", "audio", ""]]},
    {
        "task": "audio_and_text_to_text",
        "messages": [
            ["user", "text", "like this"],
            ["system", "audio", ""],
            ["user", "text", "or not?"],
        ],
    },
]
MODALITIES = {
    "text_to_audio": ["text", "audio"],
    "text_to_text": ["text"],
    "caption_to_audio": ["audio"],
    "any": [],
    "audio_to_text": ["text"],
    "audio_and_text_to_text": ["text"],
}


def stand_in_for_what_is_not_installed() -> None:
    """Modules that only training and resampling need."""
    liger = types.ModuleType("liger_kernel.ops.fused_linear_cross_entropy")
    for name in ("fused_linear_cross_entropy_forward", "LigerFusedLinearCrossEntropyFunction"):
        setattr(liger, name, None)
    liger.__getattr__ = lambda name: None  # type: ignore[method-assign]
    for name in ("liger_kernel", "liger_kernel.ops"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[liger.__name__] = liger
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")


def build(folder: Path, sources: Path) -> tuple[Any, Any]:
    """ESPnet's model and preprocessor."""
    stand_in_for_what_is_not_installed()
    from espnet2.speechlm.model.speechlm.speechlm_job import SpeechLMJobTemplate

    config = yaml.safe_load(next(folder.glob("train*.yaml")).read_text())
    published = "Qwen/Qwen3-Omni-30B-A3B-Instruct"
    encoder = config["multimodal_io"]["continuous_audio"]
    encoder |= {"encoder_hf_model_tag": published, "attn_implementation": "eager"}
    encoder["dtype"] = "float32"
    config["model"]["model_conf"] = {"attn_implementation": "eager", "dtype": torch.float32}

    # What the folders of the sources hold are configurations: ESPnet starts from their weights,
    # and replaces them all.
    def omni(*_: Any, **__: Any) -> Any:
        from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

        whole = transformers.AutoConfig.from_pretrained(sources / "qwen3-omni")
        thinker = torch.nn.Module()
        thinker.audio_tower = modeling.Qwen3OmniMoeAudioEncoder(whole.thinker_config.audio_config)
        thinker.model = thinker.visual = thinker.lm_head = torch.nn.Identity()

        def features(self: Any, data: torch.Tensor, feature_attention_mask: torch.Tensor) -> Any:
            # As the thinker does: what is not masked, one clip after another.
            lengths = feature_attention_mask.sum(-1)
            kept = data.permute(0, 2, 1)[feature_attention_mask.bool()].permute(1, 0)
            return self.audio_tower(kept, feature_lens=lengths).last_hidden_state

        thinker.get_audio_features = types.MethodType(features, thinker)
        return types.SimpleNamespace(thinker=thinker)

    transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained = omni  # type: ignore
    extractor = transformers.AutoFeatureExtractor.from_pretrained(sources / "qwen3-omni")
    transformers.AutoFeatureExtractor.from_pretrained = lambda *_, **__: extractor  # type: ignore
    codec = transformers.XcodecModel(transformers.AutoConfig.from_pretrained(sources / "xcodec"))
    transformers.XcodecModel.from_pretrained = lambda *_, **__: codec  # type: ignore
    backbone = transformers.Qwen3ForCausalLM

    def from_config(cls: Any, name: str, **kwargs: Any) -> Any:
        return cls(transformers.AutoConfig.from_pretrained(name, attn_implementation="eager"))

    backbone.from_pretrained = classmethod(from_config)  # type: ignore[assignment]
    template = SpeechLMJobTemplate(config, is_train=False)
    model = template.build_model()
    package = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(package["module"], strict=True)
    model.prepare_inference()
    return model.float().eval(), template.build_preprocessor()


def dialogue(case: dict[str, Any], clip: np.ndarray, rate: int) -> list[tuple[str, str, Any]]:
    """The messages of a request."""
    if "messages" in case:
        return [
            (role, modality, (clip[None], rate) if modality == "audio" else said)
            for role, modality, said in case["messages"]
        ]
    messages: list[tuple[str, str, Any]] = []
    if case["task"].startswith("audio"):
        messages.append(("user", "audio", (clip[None], rate)))
    if "text_in" in case:
        messages.append(("user", "text", case["text_in"]))
    return messages


def run(model: Any, preprocessor: Any, decoding: dict[str, Any], case: Any, clip: Any) -> Any:
    """Ids of the prompt and of each segment, and the samples of the audio."""
    batch = preprocessor.collate_fn(
        [(("dialogue", "none", "none"), {"dialogue": dialogue(case, *clip)})]
    )
    batch.pop("keys")
    config: dict[str, Any] = {"enforce_modality": MODALITIES[case["task"]]}
    for modality in ("text", "audio"):
        config[modality] = decoding[modality] | {"temperature": 0}
    config["audio"]["cfg"] = case.get("cfg", 1)
    segments: list[list[list[int]]] = []
    decode = type(model).inference_segment

    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = decode(model, *args, **kwargs)
        segments.append(result[0][0].tolist())
        return result

    model.inference_segment = recorded
    prompt = batch["seqs"][0].tolist()
    with torch.no_grad():
        messages, _ = model.inference(config, **batch)
    audio = [content for _, modality, content in messages if modality == "audio"]
    return case | {
        "prompt": prompt,
        "segments": segments,
        "modalities": [modality for _, modality, _ in messages],
        "text": [content[0] for _, modality, content in messages if modality == "text"],
        "samples": [] if not audio else audio[0][0].flatten()[::97].tolist(),
    }


def main(folder: str, sources: str, clip: str, output: str) -> None:
    torch.set_num_threads(1)
    model, preprocessor = build(Path(folder), Path(sources))
    decoding = yaml.safe_load((Path(folder) / "inference.yaml").read_text())
    samples = np.load(clip)
    results = [run(model, preprocessor, decoding, case, (samples, 16000)) for case in CASES]
    checksum = sum(float(t.double().abs().sum()) for t in model.state_dict().values())
    Path(output).write_text(json.dumps({"checksum": checksum, "cases": results}))
    for case in results:
        ends = [segment[-1][0] for segment in case["segments"]]
        print(case["task"], case["modalities"], [len(s) for s in case["segments"]], ends)


if __name__ == "__main__":
    main(*sys.argv[1:])
