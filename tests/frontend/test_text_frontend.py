# SPDX-License-Identifier: Apache-2.0
"""Texts are read before they are tokens, whichever way they come to the model."""

from __future__ import annotations

import gzip
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.random_layouts import example
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.lexicon import Lexicon
from vllm.unison.frontend.prompts import PromptBuilder
from vllm.unison.frontend.text_frontend import TextFrontend
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import CodecSource, SpeechSpec, TaskPrompt, TextFrontendSpec

LEXICON = Lexicon({"five": "FAJV", "dollars": "DAL", "don't": "DONT"})
WORDS = st.from_regex(r"[a-zA-Z]{1,3}('[a-z])?", fullmatch=True)


def test_known_words_are_spelled_as_they_are_said() -> None:
    assert LEXICON.respell("Five fives, don't five-fold; DOLLARS.") == (
        "FAJV fives, DONT FAJV-fold; DAL."
    )


@given(st.text(string.ascii_letters + " ',.?!;:-"), st.dictionaries(WORDS.map(str.lower), WORDS))
def test_nothing_is_lost_between_the_parts(text: str, spellings: dict[str, str]) -> None:
    parts = list(Lexicon(spellings).parts(text))
    assert "".join(written for written, _ in parts) == text
    assert all(said == spellings.get(written.lower()) for written, said in parts)


@given(st.dictionaries(WORDS.map(str.lower), WORDS))
def test_a_lexicon_is_written_and_read(spellings: dict[str, str]) -> None:
    content = Lexicon(spellings).to_bytes()
    backwards = dict(reversed(spellings.items()))
    assert Lexicon(backwards).to_bytes() == content
    read = Lexicon.from_bytes(content)
    assert len(read) == len(spellings)
    assert all(read.respell(word) == said for word, said in spellings.items())


@pytest.mark.parametrize("line", ["word", "word\t", "\tspelling", ""])
def test_a_line_that_is_none_is_named(line: str) -> None:
    content = gzip.compress(f"a\tb\n{line}\n".encode())
    with pytest.raises(ValueError, match=r"words\.gz, line 2, must be a word, a tabulator"):
        Lexicon.from_bytes(content, "words.gz")


def builder(folder: Path, lexicon: str | None) -> PromptBuilder:
    """Of a model whose tokens are words."""
    tasks = (
        TaskPrompt("speak", (1, "text", 5)),
        TaskPrompt("voice", (8, "reference_text", "voice", "text", 5)),
    )
    spec = SpeechSpec(
        StreamLayout.from_dict(example()),
        tasks=tasks,
        codec=CodecSource("codec"),
        model_path=str(folder),
        text_frontend=TextFrontendSpec("en", lexicon),
    )
    return PromptBuilder(spec, tokenize=ids_of)


def ids_of(text: str) -> list[int]:
    return [7 + sum(map(ord, word)) % 3 for word in text.split()]


@pytest.mark.parametrize("lexicon", [None, "words.gz"])
def test_a_text_is_tokenized_as_it_is_read(tmp_path: Path, lexicon: str | None) -> None:
    LEXICON.save(tmp_path / "words.gz")
    read = "five dollars" if lexicon is None else "FAJV DAL"
    assert TextFrontend(TextFrontendSpec("en", lexicon), str(tmp_path)).read("$5") == read
    built = builder(tmp_path, lexicon).build({"prompt": "$5", "prompt_token_ids": ids_of("$5")})
    assert built["prompt_token_ids"] == [1, *ids_of(read), 5]
    assert built["prompt"] == "$5"


def test_the_text_of_a_recording_is_read_too(tmp_path: Path) -> None:
    given = {
        "prompt": "$5",
        "prompt_token_ids": ids_of("$5"),
        "multi_modal_data": {"voice": {"codes": [[0, 1, 2]]}},
        "mm_processor_kwargs": {"reference_text": "Don't pay $5!"},
    }
    built = builder(tmp_path, None).build(given)
    said = ids_of("Don't pay five dollars!")
    assert built["prompt_token_ids"][: 1 + len(said)] == [8, *said]


def test_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    built = builder(tmp_path, None).build({"prompt_token_ids": [8, 7]})
    assert built["prompt_token_ids"] == [8, 7]


def test_what_has_no_reading_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="prompt must hold text"):
        builder(tmp_path, None).build({"prompt": "日本", "prompt_token_ids": [7]})


def test_a_lexicon_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text_frontend\.lexicon must be a file of the model"):
        builder(tmp_path, "words.gz")
