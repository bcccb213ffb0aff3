# SPDX-License-Identifier: Apache-2.0
"""What a lane attends to, as hashes of KV blocks have it."""

import numpy as np

from vllm.unison.messages.conditioning import AudioInput, EncoderInput, hash_of_ids


def test_hashes_are_of_the_ids() -> None:
    texts = [[], [0], [0, 0], [1, 256], [256, 1], [1], [257]]
    assert len({hash_of_ids(ids) for ids in texts}) == len(texts)
    assert hash_of_ids([1, 2]) == hash_of_ids((1, 2))


def test_an_encoder_input_knows_its_length_and_its_hash() -> None:
    given, other = EncoderInput([5, 1]), EncoderInput([5, 2])
    assert given.num_states == 2
    assert given.key == hash_of_ids([5, 1]) != other.key


def test_the_key_of_a_clip_is_that_of_its_features_and_place() -> None:
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    clip = AudioInput(features, 3, 1)
    assert clip.key == AudioInput(features.copy(), 3, 1).key
    others = [
        AudioInput(features, 4, 1),
        AudioInput(features.reshape(2, 3), 3, 1),
        AudioInput(features + 1, 3, 1),
    ]
    assert len({clip.key, *(other.key for other in others)}) == 4
