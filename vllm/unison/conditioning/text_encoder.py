# SPDX-License-Identifier: Apache-2.0
"""Token ids of texts to encoder states: T5 as transformers computes it, and a projection.

In float32 whatever the rest of the model computes in, as in training. A text's states do not depend
on what is encoded beside it: see `TextEncoder.encode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vllm.unison.conditioning.state_cache import Key, StateCache
from vllm.unison.formats.expected_tensors import listed
from vllm.unison.formats.musicgen_weights import TEXT_ENCODER, TEXT_PROJECTION

AUDIOCRAFTS_ENCODER = "t5-base"
"""What audiocraft takes where a configuration does not say."""

DEFAULT_CAPACITY = 64 * 1024 * 1024
"""Bytes of states that are kept by default."""


class TextEncoder:
    """An encoder and the projection to the width of the decoder that attends to it.

    Args:
        model: a T5EncoderModel; put into eval mode and float32.
        projection: of the encoder's width to the decoder's, or None if they are the same.
        capacity: bytes of states that are kept, for texts that come again.

    Attributes:
        hidden_size: of the states.
        cache: the states that are kept.
        num_encoded: texts that were computed, not found.
    """

    def __init__(
        self, model: Any, projection: nn.Linear | None, capacity: int = DEFAULT_CAPACITY
    ) -> None:
        self._model = model.float().eval().requires_grad_(False)
        self._projection = projection
        if projection is not None:
            projection.float().eval().requires_grad_(False)
        self._vocabulary_size = int(model.config.vocab_size)
        self.hidden_size = int(model.config.hidden_size)
        if projection is not None:
            self.hidden_size = projection.out_features
        self.cache = StateCache(capacity)
        self.num_encoded = 0

    @classmethod
    def from_tensors(
        cls,
        config: Any,
        tensors: Iterable[tuple[str, torch.Tensor]],
        device: torch.device | str = "cpu",
        capacity: int = DEFAULT_CAPACITY,
    ) -> TextEncoder:
        """Build the encoder of a published model.

        Args:
            config: the T5 configuration.
            tensors: of the model, by transformers' names; those of other parts are passed over.
                Without any of the encoder's, as audiocraft saves a model, the encoder is the one
                that the configuration names.
            device: where it runs.
            capacity: see the class.

        Raises:
            ValueError: the encoder's tensors are not complete, or it cannot be found.
        """
        from transformers import T5EncoderModel

        own: dict[str, torch.Tensor] = {}
        projection: dict[str, torch.Tensor] = {}
        for name, tensor in tensors:
            for prefix, part in ((TEXT_ENCODER, own), (TEXT_PROJECTION, projection)):
                if name.startswith(prefix):
                    part[name.removeprefix(prefix)] = tensor.to(device, torch.float32)
        linear = None
        if projection:
            outputs, inputs = projection["weight"].shape
            with torch.device("meta"):
                linear = nn.Linear(inputs, outputs)
            linear.load_state_dict(projection, assign=True)
        if not own:
            return cls(_published_encoder(config).to(device), linear, capacity)
        with torch.device("meta"):
            model = T5EncoderModel(config)
        _complete_tied(own, model.all_tied_weights_keys)
        missing = [name for name in model.state_dict() if name not in own]
        if missing:
            raise ValueError(
                f"the text encoder lacks {listed([TEXT_ENCODER + n for n in missing])}"
            )
        model.load_state_dict(own, assign=True)
        return cls(model, linear, capacity)

    @classmethod
    def with_random_weights(
        cls, config: Any, hidden_size: int, device: torch.device | str = "cpu"
    ) -> TextEncoder:
        """An encoder for models whose weights are not loaded either (`--load-format dummy`).

        Args:
            config: the T5 configuration.
            hidden_size: of the decoder.
            device: where it runs.
        """
        from transformers import T5EncoderModel

        with torch.device(device):
            model = T5EncoderModel(config)
            width = int(config.hidden_size)
            linear = None if width == hidden_size else nn.Linear(width, hidden_size)
        return cls(model, linear)

    @torch.inference_mode()
    def encode(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Encode texts; those that came before, or come twice, are computed once.

        Each text is a call of the model, without padding, so that its bits are its own. Matrix
        products choose how they add up by how many rows they have: in float32 on a CPU, padding
        changes the last bits of most texts, and a batch of equal lengths those of short ones.

        Args:
            texts: ids with the tokenizer's end token; no ids at all for a text that says nothing,
                not even that, whose states are empty.

        Returns:
            per text float32 [num_ids, hidden_size] on the encoder's device, not to be written to.

        Raises:
            ValueError: an id is not of the vocabulary; nothing is encoded then.
        """
        for index, ids in enumerate(texts):
            for token in ids:
                if not 0 <= token < self._vocabulary_size:
                    raise ValueError(
                        f"texts[{index}] must hold ids in [0, {self._vocabulary_size}), not {token}"
                    )
        # Kept here as well: the cache may be too small for the texts of one call.
        states: dict[Key, torch.Tensor] = {}
        keys = [tuple(ids) for ids in texts]
        for key, ids in zip(keys, texts, strict=True):
            if key not in states:
                found = self.cache.get(key)
                states[key] = self._computed(key, ids) if found is None else found
        return [states[key] for key in keys]

    @torch.inference_mode()
    def take_peak_memory(self, num_ids: int) -> None:
        """Take for a moment what the encoder may take besides its weights, for memory profiling.

        That is what a text of so many ids needs, while as many states are kept as ever.

        Args:
            num_ids: of the longest text.
        """
        kept = torch.empty(self.cache.capacity, dtype=torch.uint8, device=self._model.device)
        self._run([0] * num_ids)
        del kept

    def _computed(self, key: Key, ids: Sequence[int]) -> torch.Tensor:
        if len(ids) == 0:
            return torch.empty((0, self.hidden_size), device=self._model.device)
        states = self._run(ids)
        self.num_encoded += 1
        self.cache.put(key, states)
        return states

    def _run(self, ids: Sequence[int]) -> torch.Tensor:
        """float32 [num_ids, hidden_size] states of a text of at least one id."""
        inputs = torch.tensor([list(ids)], dtype=torch.int64, device=self._model.device)
        states: torch.Tensor = self._model(input_ids=inputs).last_hidden_state[0]
        return states if self._projection is None else self._projection(states)


def _published_encoder(config: Any) -> Any:
    """The encoder of a repository or a folder of its own, which must be of the same shape."""
    from transformers import T5EncoderModel

    name = getattr(config, "_name_or_path", "") or AUDIOCRAFTS_ENCODER
    where = f"text_encoder._name_or_path, {name!r},"
    try:
        model = T5EncoderModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the checkpoint holds no text encoder, and {where} is no folder or hub id of one"
        ) from error
    for field in ("d_model", "num_layers", "num_heads", "vocab_size"):
        found, expected = getattr(model.config, field), getattr(config, field)
        if found != expected:
            raise ValueError(f"{where} has {field} {found}, not {expected} as config.json says")
    return model


def _complete_tied(tensors: dict[str, torch.Tensor], tied: Mapping[str, str]) -> None:
    """Give tensors that are one, and stored once, both names."""
    for name, source in tied.items():
        for missing, present in ((name, source), (source, name)):
            if missing not in tensors and present in tensors:
                tensors[missing] = tensors[present]
