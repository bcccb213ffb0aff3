# SPDX-License-Identifier: Apache-2.0
"""A backbone's tokenizer in the ids of a model whose text lies behind others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vllm.unison.formats.shifted_tokenizer import write_shifted_tokenizer

FIRST = 300


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """The folder of a byte-level tokenizer with a merge, an added and a special token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)} | {"he": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens(["<think>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "original")
    return tmp_path / "original"


def test_ids_are_the_originals_plus_the_first(original: Path, tmp_path: Path) -> None:
    text = "hello!<think> x<|endoftext|>é"
    write_shifted_tokenizer(str(original), FIRST, 259, tmp_path)
    before, after = map(AutoTokenizer.from_pretrained, (original, tmp_path))
    ids = before.encode(text, add_special_tokens=False)
    assert {256, 257, 258} < set(ids)
    assert after.encode(text) == [index + FIRST for index in ids]
    assert after.decode(after.encode(text)) == text
    assert after.decode(after.encode(text), skip_special_tokens=True) == "hello!<think> xé"


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(
    original: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must have ids below 258, not 258"):
        write_shifted_tokenizer(str(original), FIRST, 258, tmp_path)
