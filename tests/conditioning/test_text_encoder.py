# SPDX-License-Identifier: Apache-2.0
"""Texts to encoder states, compared with MusicGen's own path in transformers."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.musicgen import TEXT_VOCABULARY, tiny_musicgen, write_tiny_musicgen
from vllm.unison.conditioning.text_encoder import TextEncoder
from vllm.unison.formats.musicgen import read_musicgen
from vllm.unison.formats.musicgen_weights import read_musicgen_weights

END = 1
PAD = 0


def random_texts(count: int, seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [
        [*(source.randrange(2, TEXT_VOCABULARY) for _ in range(source.randrange(1, 60))), END]
        for _ in range(count)
    ]


def encoder_of(model: Any, **kwargs: Any) -> TextEncoder:
    return TextEncoder.from_tensors(model.config.text_encoder, model.state_dict().items(), **kwargs)


class Seen(Exception):
    """What the decoder was given."""


def states_by_transformers(model: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    """What the decoder attends to when the model itself runs a padded batch of texts."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [PAD] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])

    def decoder(**kwargs: Any) -> None:
        raise Seen(kwargs["encoder_hidden_states"], kwargs["encoder_attention_mask"])

    books = model.config.decoder.num_codebooks
    columns = torch.full((len(texts) * books, 1), model.config.decoder.pad_token_id)
    forward, model.decoder.forward = model.decoder.forward, decoder
    try:
        with pytest.raises(Seen) as caught, torch.no_grad():
            model(input_ids=ids, attention_mask=mask, decoder_input_ids=columns)
    finally:
        model.decoder.forward = forward
    states, its_mask = caught.value.args
    assert torch.equal(its_mask, mask)
    assert all(not states[i, len(text) :].any() for i, text in enumerate(texts))
    return [states[i, : len(text)] for i, text in enumerate(texts)]


@pytest.mark.parametrize("hidden_size", [16, 12])
def test_states_are_those_of_transformers(hidden_size: int) -> None:
    """Of a padded batch of it; with a projection, and without one where the widths are equal."""
    model = tiny_musicgen(hidden_size=hidden_size)
    encoder = encoder_of(model)
    assert encoder.hidden_size == hidden_size
    texts = random_texts(9)
    for ours, theirs in zip(
        encoder.encode(texts), states_by_transformers(model, texts), strict=True
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_a_text_alone_has_the_bits_of_transformers() -> None:
    model = tiny_musicgen()
    for text in random_texts(5, seed=1):
        (theirs,) = states_by_transformers(model, [text])
        (ours,) = encoder_of(model).encode([text])
        assert torch.equal(ours, theirs)


def test_bits_do_not_depend_on_batch_mates() -> None:
    model = tiny_musicgen()
    texts = random_texts(12, seed=2)
    alone = [encoder_of(model).encode([text])[0] for text in texts]
    order = random.Random(3).sample(range(12), 12)
    together = encoder_of(model).encode([texts[index] for index in order])
    for index, states in zip(order, together, strict=True):
        assert torch.equal(states, alone[index])


def test_a_published_folder_gives_the_same(tmp_path: Path) -> None:
    model = write_tiny_musicgen(tmp_path)
    form = read_musicgen(tmp_path)
    encoder = TextEncoder.from_tensors(form.text_config, read_musicgen_weights(tmp_path, form))
    texts = random_texts(3)
    for ours, theirs in zip(encoder.encode(texts), encoder_of(model).encode(texts), strict=True):
        assert torch.equal(ours, theirs)


def test_half_precision_weights_are_computed_in_float32() -> None:
    model = tiny_musicgen().bfloat16()
    encoder = encoder_of(model)
    texts = random_texts(2)
    expected = states_by_transformers(model.float(), texts)
    for ours, theirs in zip(encoder.encode(texts), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_what_comes_again_is_found() -> None:
    encoder = encoder_of(tiny_musicgen())
    first, second = random_texts(2)
    states = encoder.encode([first, second, first])
    assert states[0] is states[2]
    assert encoder.num_encoded == 2
    assert encoder.encode([second])[0] is states[1]
    assert encoder.num_encoded == 2
    size = 4 * encoder.hidden_size * (len(first) + len(second))
    assert encoder.cache.num_bytes == size


def test_memory_is_bounded() -> None:
    encoder = encoder_of(tiny_musicgen(), capacity=4 * 16 * 70)
    texts = random_texts(20, seed=4)
    together = encoder.encode(texts)
    assert 0 < encoder.cache.num_bytes <= encoder.cache.capacity
    again = encoder.encode(texts)
    assert encoder.num_encoded > 20, "not all had room"
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))


def test_twice_in_a_call_is_once_even_without_room() -> None:
    encoder = encoder_of(tiny_musicgen(), capacity=0)
    (text,) = random_texts(1)
    encoder.encode([text, text])
    assert encoder.num_encoded == 1


def test_no_ids_are_no_states() -> None:
    encoder = encoder_of(tiny_musicgen())
    (empty,) = encoder.encode([[]])
    assert empty.shape == (0, 16)
    assert encoder.encode([]) == []
    assert encoder.num_encoded == 0


@pytest.mark.parametrize("token", [-1, TEXT_VOCABULARY])
def test_an_unknown_id_is_refused(token: int) -> None:
    encoder = encoder_of(tiny_musicgen())
    with pytest.raises(ValueError, match=rf"^texts\[1\] must hold ids in \[0, 50\), not {token}$"):
        encoder.encode([[2, 1], [token, 1]])
    assert encoder.num_encoded == 0


def test_missing_tensors_are_named() -> None:
    model = tiny_musicgen()
    name = "text_encoder.encoder.block.1.layer.0.SelfAttention.q.weight"
    tensors = [(n, t) for n, t in model.state_dict().items() if n != name]
    with pytest.raises(ValueError, match=rf"^the text encoder lacks the tensor '{name}'$"):
        TextEncoder.from_tensors(model.config.text_encoder, tensors)


def test_profiling_takes_what_encoding_may_take_and_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = encoder_of(tiny_musicgen(), capacity=12345)
    taken: list[int] = []
    empty = torch.empty

    def recording(*size: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*size, **options)
        taken.append(tensor.numel() * tensor.element_size())
        return tensor

    monkeypatch.setattr(torch, "empty", recording)
    encoder.take_peak_memory(30)
    assert taken[0] == encoder.cache.capacity == 12345
    assert len(encoder.cache) == encoder.cache.num_bytes == encoder.num_encoded == 0
