# SPDX-License-Identifier: Apache-2.0
"""What the text of a request becomes before it is tokens: words that are said, and how."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import cached_file

from vllm.unison.frontend.lexicon import Lexicon
from vllm.unison.frontend.spoken_text import spoken_text
from vllm.unison.model.spec import TextFrontendSpec


class TextFrontend:
    """Reads texts for a model that was trained on what this makes of them.

    Args:
        spec: of the model.
        model_path: the model's folder or hub id.

    Raises:
        ValueError: naming the file of the lexicon if it is missing, or not one.
    """

    def __init__(self, spec: TextFrontendSpec, model_path: str) -> None:
        self._lexicon: Lexicon | None = None
        if spec.lexicon is not None:
            try:
                file = cached_file(model_path, spec.lexicon)
            except OSError as error:
                raise ValueError(
                    f"text_frontend.lexicon must be a file of the model, not {spec.lexicon!r}"
                ) from error
            self._lexicon = Lexicon.load(Path(file))

    def read(self, text: str) -> str:
        """The text in words, and those that the lexicon has as they are said."""
        words = spoken_text(text)
        return words if self._lexicon is None else self._lexicon.respell(words)
