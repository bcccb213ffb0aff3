# SPDX-License-Identifier: Apache-2.0
"""Audio as libraries hand it over, in one form; and what is no sound."""

import math
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm.unison.frontend.clips import MAX_LEVEL, read_clip
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.messages.streams import AudioOutput

RATE = 16000
MONO = (0.5 * np.sin(np.arange(40) / 3)).astype(np.float32)
STEREO = np.stack([MONO, -0.25 * MONO])


@pytest.mark.parametrize(
    "audio",
    [
        (MONO, RATE),  # soundfile, librosa
        [MONO, RATE],
        (RATE, MONO),  # SciPy, Gradio
        (torch.from_numpy(MONO), RATE),
        (torch.from_numpy(MONO)[None], RATE),  # torchaudio
        (MONO.tolist(), float(RATE)),
        (MONO, np.int64(RATE)),
        (MONO, np.array(RATE)),
        (MONO, torch.tensor(RATE)),
        (MONO[:, None], RATE),
        (MONO[None], RATE),
        {"array": MONO, "sampling_rate": RATE},  # Hugging Face datasets
        {"array": MONO.tolist(), "sampling_rate": RATE, "path": None},
        [{"array": MONO, "sampling_rate": RATE}],
        [(MONO, RATE)],
        AudioOutput(MONO, RATE, np.zeros((1, 1), np.int32)),  # what this package makes
        SimpleNamespace(data=torch.from_numpy(MONO)[None], sample_rate=RATE),  # torchcodec
        (torch.from_numpy(MONO).requires_grad_(), RATE),
        (MONO.astype(np.float64), RATE),
    ],
)
def test_forms_of_one_clip(audio: Any) -> None:
    samples, rate = read_clip(audio)
    assert samples.dtype == np.float32 and samples.flags.c_contiguous
    assert rate == RATE
    np.testing.assert_array_equal(samples.reshape(-1), MONO)


@pytest.mark.parametrize("audio", [MONO, MONO.tolist(), torch.from_numpy(MONO), [MONO]])
def test_samples_without_a_rate(audio: Any) -> None:
    samples, rate = read_clip(audio)
    assert rate is None
    np.testing.assert_array_equal(samples, MONO)


def test_softer_types() -> None:
    for tensor in (torch.from_numpy(MONO).bfloat16(), torch.from_numpy(MONO).half()):
        np.testing.assert_array_equal(read_clip(tensor)[0], tensor.float().numpy())
    half = MONO.astype(np.float16)
    np.testing.assert_array_equal(read_clip(half)[0], half.astype(np.float32))


@pytest.mark.parametrize("channels", [2, 3, 16, 39])
def test_the_smaller_number_is_the_channels(channels: int) -> None:
    first = np.stack([MONO * (0.9**n) for n in range(channels)])
    np.testing.assert_array_equal(read_clip((first, RATE))[0], first)
    np.testing.assert_array_equal(read_clip((first.T, RATE))[0], first)
    np.testing.assert_array_equal(read_clip((torch.from_numpy(first.T), RATE))[0], first)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32])
def test_integer_samples_are_pcm(dtype: type) -> None:
    info = np.iinfo(dtype)
    # Unsigned PCM has its zero in the middle of the range, as in WAV files.
    zero = 0 if info.min else (int(info.max) + 1) // 2
    scale = (int(info.max) - int(info.min) + 1) // 2
    expected = np.array([0.0, 0.5, -0.25, -1.0])
    samples: np.ndarray = (zero + expected * scale).astype(dtype)
    for form in (samples, torch.from_numpy(samples)):
        np.testing.assert_allclose(read_clip((form, RATE))[0], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0.0, np.nan]), "audio must have finite samples, not NaN or infinity"),
        (np.array([math.inf, 0.0], np.float32), "audio must have finite samples"),
        (np.array([0.0, 1e300]), r"audio must have float samples .* not in \[0, 1e\+300\]"),
        (np.array([-32768, 1000], np.float32), r"not in \[-32768, 1000\]; integer samples need an"),
        ([1e30, -1e30], r"not in \[-1e\+30, 1e\+30\]"),
        (np.array([-200.0, 0.5]), r"not in \[-200, 0.5\]"),
        (torch.tensor([0.0, 200.0]), r"not in \[0, 200\]"),
        (np.array([MAX_LEVEL * 1.001, 0.0]), r"taken up to 8\), not in \[0, 8.008\]"),
        ([0, 1000, -1000], r"int64 samples in \[-1000, 1000\] have no known full scale.* int16"),
        (np.array([7, 2**62]), r"audio must use its type's range"),
        (np.array([-(2**15), 2**15 - 1], np.int32), r"int32 samples in \[-32768, 32767\] have no"),
        (np.zeros(4, np.uint32), r"audio must use its type's range"),
    ],
)
def test_what_is_no_sound_is_refused(samples: Any, message: str) -> None:
    for audio in (samples, (samples, RATE), {"array": samples, "sampling_rate": RATE}):
        with pytest.raises(InvalidRequestError, match=message) as caught:
            read_clip(audio)
        assert caught.value.parameter == "audio"


@pytest.mark.parametrize("level", [1.0, 1.5, MAX_LEVEL])
def test_what_overshoots_is_taken(level: float) -> None:
    samples = np.array([level, -level, 0.0])
    np.testing.assert_array_equal(read_clip(samples)[0], samples)


def test_integers_of_32_bits_may_be_silent_or_use_their_range() -> None:
    np.testing.assert_array_equal(read_clip(np.zeros(3, np.int32))[0], np.zeros(3))
    assert read_clip(np.array([2**15 + 1, 0], np.int32))[0][0] == np.float32((2**15 + 1) / 2**31)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([], "audio must have at least one sample"),
        (np.zeros((2, 0)), "audio must have at least one sample"),
        (np.zeros((5, 5)), "audio of shape [5, 5] is ambiguous: its channels must be fewer"),
        (np.zeros((1, 2, 3)), "audio must have the shape [num_samples], [num_channels, num_sam"),
        (np.float32(0.5), "audio must have the shape"),
        ([MONO, MONO], "audio must be one clip, not 2"),
        ({"array": MONO}, "not a dict with the keys ['array']"),
        (
            {"array": MONO, "sampling_rate": 1, "rate": 2},
            "not a dict with the keys ['array', 'rate'",
        ),
        ({"array": MONO, "sampling_rate": "16000"}, "audio's sample rate must be a number of Hz"),
        ((MONO, None), "audio's sample rate must be a number of Hz, not None"),
        ((MONO, True), "audio's sample rate must be a number of Hz, not True"),
        (b"RIFF", "audio must be samples, (samples, sample_rate) or {'array'"),
        ("speech.wav", "audio must be samples, (samples, sample_rate)"),
        (np.zeros(4, complex), "audio must be samples"),
        (torch.zeros(4, dtype=torch.bool), "audio must be samples"),
        ([[0.0], [0.0, 1.0]], "audio must be one clip, not 2"),
        (([[0.0], [0.0, 1.0]], RATE), "audio must be an array, all rows of one length"),
    ],
)
def test_other_forms_are_refused(audio: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(message)) as caught:
        read_clip(audio)
    assert caught.value.parameter == "audio"
