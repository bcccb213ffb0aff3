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


class EncoderInput(msgspec.Struct, array_like=True, gc=False, frozen=True):
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
