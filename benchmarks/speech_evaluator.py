# SPDX-License-Identifier: Apache-2.0
"""An independent evaluator of speech: pocketsphinx with a grammar of the vocabulary.

Knows nothing of this project's models; its own error rate on synthesized originals is the
lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16000
WORD_INSERTION_PROBABILITY = 1e-4
"""Its default of 0.65 makes pocketsphinx hear a word in the closure of a final consonant."""


class Evaluator:
    """Recognizes sequences of words of a closed vocabulary.

    Args:
        words: the vocabulary, in lower case; all must be in pocketsphinx's dictionary.
    """

    def __init__(self, words: Sequence[str]) -> None:
        from pocketsphinx import Decoder, get_model_path

        self._decoder = Decoder(
            hmm=get_model_path("en-us/en-us"),
            dict=get_model_path("en-us/cmudict-en-us.dict"),
            loglevel="FATAL",
            samprate=SAMPLE_RATE,
            wip=WORD_INSERTION_PROBABILITY,
            lm=None,
        )
        grammar = f"#JSGF V1.0; grammar words; public <words> = ({' | '.join(words)})+;"
        self._decoder.add_jsgf_string("words", grammar)
        self._decoder.activate_search("words")

    def transcribe(self, samples: NDArray[np.float32]) -> str:
        """Words of samples [num_samples] at 16 kHz, full scale [-1, 1]."""
        if len(samples) == 0:
            return ""
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


def word_error_rate(references: Sequence[str], heard: Sequence[str]) -> float:
    """Errors of all sentences over words of all references."""
    return float(jiwer.wer(list(references), list(heard)))
