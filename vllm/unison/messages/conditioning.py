# SPDX-License-Identifier: Apache-2.0
"""What a lane is conditioned on besides its tokens, from the front end to the worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np


def hash_of_ids(ids: Sequence[int]) -> bytes:
    """A hash of token ids (SHA-256), equal exactly if the ids are."""
    return hashlib.sha256(np.asarray(ids, "<i8").tobytes()).digest()


class EncoderInput(msgspec.Struct, array_like=True, gc=False, frozen=True, tag=True):
    """A text that the worker encodes, for the decoder's layers to attend to.

    A lane without one attends to nothing: its cross-attention adds exactly zero, and it takes no
    memory for it.

    Attributes:
        token_ids: ids in the encoder's vocabulary, its end token included; at least one.
    """

    token_ids: list[int]

    @property
    def num_states(self) -> int:
        """Encoder states, and so positions of keys and values in every layer."""
        return len(self.token_ids)

    @property
    def key(self) -> bytes:
        """Hash of the text; what hashes of KV blocks have of it."""
        return hash_of_ids(self.token_ids)


class PrefixInput(msgspec.Struct, array_like=True, gc=False, frozen=True, tag=True):
    """A melody and a text whose states stand in the first positions of a lane's prompt.

    The prompt has placeholders there, whose embeddings the worker replaces: see
    `worker.prefix_embeddings`. The melody's positions come before the text's.

    Attributes:
        chroma: per position of the melody the bin of the chromagram that sounds, a byte each.
        token_ids: ids in the encoder's vocabulary, its end token included; none for a lane that has
            no text, whose states are zeros.
        num_text: positions of the text; as many as there are ids, if there are any.
    """

    chroma: bytes
    token_ids: list[int]
    num_text: int

    @property
    def first_position(self) -> int:
        """The first position of the prompt that a state stands in."""
        return 0

    @property
    def num_positions(self) -> int:
        """Positions of the prompt that the states stand in."""
        return len(self.chroma) + self.num_text

    @property
    def num_states(self) -> int:
        """Encoder states that have keys and values of their own: none beside the prompt's."""
        return 0

    @property
    def key(self) -> bytes:
        """Hash of the melody and the text; what hashes of KV blocks have of it."""
        sizes = np.array([len(self.chroma), self.num_text], "<i8").tobytes()
        ids = np.asarray(self.token_ids, "<i8").tobytes()
        return hashlib.sha256(sizes + self.chroma + ids).digest()


class AudioInput(msgspec.Struct, array_like=True, gc=False, frozen=True, tag=True):
    """A clip that the worker encodes, whose states stand in positions of a lane's prompt.

    As with PrefixInput, the prompt has placeholders there.

    Attributes:
        features: [num_frames, num_mel_bins] float32 log-mel features.
        first_position: of the prompt that a state stands in.
        num_positions: states.
    """

    features: np.ndarray
    first_position: int
    num_positions: int

    @property
    def num_states(self) -> int:
        """Encoder states that have keys and values of their own: none beside the prompt's."""
        return 0

    @property
    def key(self) -> bytes:
        """Hash of the clip and of where it stands; what hashes of KV blocks have of it."""
        sizes = np.array([*self.features.shape, self.first_position], "<i8").tobytes()
        return hashlib.sha256(sizes + np.asarray(self.features, "<f4").tobytes()).digest()


PromptStates = PrefixInput | AudioInput
"""What stands in the place of embeddings of a prompt."""

LaneConditioning = EncoderInput | PrefixInput | AudioInput
"""What a lane has besides its tokens."""
