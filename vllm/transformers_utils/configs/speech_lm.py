# SPDX-License-Identifier: Apache-2.0
"""Configuration of SpeechLM checkpoints: a decoder backbone and what makes it multi-stream."""

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from vllm.unison.formats.backbone_config import make_backbone_config

if TYPE_CHECKING:
    from vllm.unison.model.spec import SpeechSpec

HUGGING_FACE_KEYS = frozenset(
    {
        *(field.name for field in dataclasses.fields(PreTrainedConfig)),
        *("_attn_implementation", "_commit_hash", "_name_or_path", "attn_implementation"),
        *("auto_map", "experts_implementation", "model_type", "name_or_path", "num_labels"),
        *("output_attentions", "torch_dtype"),
    }
)
"""What the transformers library itself writes into any config.json, or passes beside it."""


class SpeechLMConfig(PreTrainedConfig):
    """config.json of a SpeechLM checkpoint (`model_type: speech_lm`).

    Args:
        backbone_config: configuration of the decoder backbone, as transformers has it; its
            `architectures` names the vLLM model class.
        stream_layout: see vllm.unison.model.layout.StreamLayout.from_dict.
        embedding: `primary_skip_ids` and `auxiliary_skip_ids`, ids that add nothing to the input
            embedding on stream 0 and on the other streams.
        head_offsets: whether the checkpoint holds `head_offsets` [num_streams, hidden_size].
        codec: `name_or_path` and `revision` of the codec, or None.
        tasks: task prompts by name; each a list of token ids and of "text", "audio", "voice",
            "reference_text" and "flush", and of optional sections, which are such lists.
        guidance: `null_prompt` (token ids, or "pads") and `audio_only`, or None.
        voices: token ids by the voice's name, or None.
        default_voice: the voice of a request that names none, or None.
        generation_defaults: by task, sampling parameters for what a request leaves out, or None.
        languages: codes of the languages that the model understands and speaks, or None.
        text_frontend: `language` and `lexicon` of what texts become before they are tokens, or
            None.
    """

    model_type = "speech_lm"

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        stream_layout: dict[str, Any] | None = None,
        embedding: dict[str, Any] | None = None,
        head_offsets: bool = False,
        codec: dict[str, Any] | None = None,
        tasks: dict[str, list[int | str | list[int | str]]] | None = None,
        guidance: dict[str, Any] | None = None,
        voices: dict[str, list[int]] | None = None,
        default_voice: str | None = None,
        generation_defaults: dict[str, dict[str, Any]] | None = None,
        languages: list[str] | None = None,
        text_frontend: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        own = inspect.signature(SpeechLMConfig.__init__).parameters.keys() - {"self", "kwargs"}
        if unknown := sorted(kwargs.keys() - HUGGING_FACE_KEYS):
            raise ValueError(f"config.json has unknown keys {unknown}; known are {sorted(own)}")
        self.backbone_config = make_backbone_config(backbone_config, "llama")
        self.stream_layout = stream_layout or {}
        self.embedding = embedding
        self.head_offsets = head_offsets
        self.codec = codec
        self.tasks = tasks
        self.guidance = guidance
        self.voices = voices
        self.default_voice = default_voice
        self.generation_defaults = generation_defaults
        self.languages = languages
        self.text_frontend = text_frontend
        super().__init__(**kwargs)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """The backbone's configuration: what the engine sizes its caches by."""
        return self.backbone_config

    def speech_spec(self, model_path: str, revision: str | None = None) -> "SpeechSpec":
        """The specification of the model; see `multistream_spec`."""
        from vllm.unison.model.spec import SpeechSpec

        return SpeechSpec.from_config(self, model_path)
