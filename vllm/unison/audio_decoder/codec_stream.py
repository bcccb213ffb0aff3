# SPDX-License-Identifier: Apache-2.0
"""Where the codec runs, and how its samples come to the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class HostCopy(Protocol):
    """Samples on their way to the host."""

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        ...

    def wait(self) -> NDArray[np.float32]:
        """The samples, float32, once they are there."""
        ...


class CodecStream(Protocol):
    """Runs the codec's calls and brings samples to the host."""

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the codec is called."""
        ...

    def to_device(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes from the host to the codec's device."""
        ...

    def fetch(self, samples: torch.Tensor) -> HostCopy:
        """Start to bring samples to the host."""
        ...


class ReadyCopy:
    """Samples that are on the host already."""

    def __init__(self, samples: torch.Tensor) -> None:
        self._samples = samples

    def is_done(self) -> bool:
        return True

    def wait(self) -> NDArray[np.float32]:
        samples: NDArray[np.float32] = self._samples.numpy()
        return samples


class HostCodecStream:
    """On the CPU: at once, in the thread that asks.

    A thread of its own would share the cores with the model's step and gain nothing.
    """

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Nothing to prepare."""
        with torch.inference_mode():
            yield

    def to_device(self, codes: torch.Tensor) -> torch.Tensor:
        """The same tensor."""
        return codes

    def fetch(self, samples: torch.Tensor) -> HostCopy:
        """There already."""
        return ReadyCopy(samples)


class _Copy:
    """A copy to pinned memory that an event says is complete."""

    def __init__(self, samples: torch.Tensor) -> None:
        self._host = torch.empty(samples.shape, dtype=samples.dtype, pin_memory=True)
        self._host.copy_(samples, non_blocking=True)
        # Waiting for it must not keep a core busy.
        self._done = torch.cuda.Event(blocking=True)
        self._done.record()

    def is_done(self) -> bool:
        return bool(self._done.query())

    def wait(self) -> NDArray[np.float32]:
        self._done.synchronize()
        # Ordinary memory: pinned blocks are few, and the samples may be kept for long.
        samples: NDArray[np.float32] = self._host.numpy().copy()
        return samples


class CudaCodecStream:
    """On a CUDA device: on a stream of its own, beside the model's.

    All that the codec reads and writes, the states between two calls included, stays on this
    stream, so that its calls need no event among themselves. Codes come from the host, so there is
    nothing of the model's stream to wait for.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The stream; and float32 as it is: convolutions may be rounded to TF32 by default."""
        with (
            torch.inference_mode(),
            torch.cuda.stream(self._stream),
            torch.backends.cudnn.flags(
                enabled=torch.backends.cudnn.enabled,
                benchmark=False,
                deterministic=torch.backends.cudnn.deterministic,
                allow_tf32=False,
            ),
        ):
            yield

    def to_device(self, codes: torch.Tensor) -> torch.Tensor:
        """An asynchronous copy from pinned memory; the allocator keeps that until it is done."""
        return codes.pin_memory().to(self._device, non_blocking=True)

    def fetch(self, samples: torch.Tensor) -> HostCopy:
        """An asynchronous copy to pinned memory."""
        return _Copy(samples)


def codec_stream_for(device: torch.device) -> CodecStream:
    """The codec stream of a kind of device."""
    return CudaCodecStream(device) if device.type == "cuda" else HostCodecStream()
