# SPDX-License-Identifier: Apache-2.0
"""Prompt audio to codes, several clips at a time.

Each clip is encoded on one thread, alone, whatever else is: its codes then cannot depend on what
they were asked for with. Batches of clips of one length were tried and are not that: at 10 frames
the matrix products of a batch round differently. Nor are they faster beyond clips of a second,
while a clip that PyTorch spreads over all cores waits for the slowest of them at every layer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

import vllm.envs as envs
from vllm.unison.codecs.resampling import resample
from vllm.unison.frontend.clips import read_clip

CACHED_CLIPS = 64
MAX_AHEAD = 32
"""Clips of an offline batch that are encoded or wait for it before their prompt's turn; fewer than
CACHED_CLIPS."""

_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
"""Before an engine in this process binds its threads, and with them those that they start."""

_SETTING_THREADS = threading.Lock()

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class AudioEncoder(Protocol):
    """What makes codes of samples: a codec, or what hears something else in them.

    Attributes:
        sample_rate: of the samples, in Hz.
        num_channels: of the samples.
        min_clip_samples: up to which a clip is completed with zeros.
    """

    sample_rate: int
    num_channels: int
    min_clip_samples: int

    def encode(self, samples: torch.Tensor) -> torch.Tensor:
        """int32 codes [num_frames, num_codebooks] of samples as a Codec takes them."""
        ...


class KeptClip:
    """A clip whose codes are kept for as long as it is, however many others come after it.

    Attributes:
        audio: see `read_clip`.
        codes: of it, once it has been encoded.
    """

    def __init__(self, audio: Any) -> None:
        self.audio = audio
        self.codes: NDArray[np.int32] | None = None


class ClipEncoder:
    """Encodes clips and keeps the codes of the last ones.

    Args:
        load_codec: gives the codec, or the like; called when the first clip comes.
        num_threads: clips that are encoded at a time; None: VLLM_MAX_AUDIO_PREPROCESS_WORKERS.
    """

    def __init__(
        self, load_codec: Callable[[], AudioEncoder], num_threads: int | None = None
    ) -> None:
        self._load_codec = load_codec
        self.num_threads = num_threads or envs.VLLM_MAX_AUDIO_PREPROCESS_WORKERS
        # Threads start with the first clip: the engine, which may be forked, is up by then.
        self._pool = ThreadPoolExecutor(
            self.num_threads, "audio-encode", initializer=_use_one_thread
        )
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._codes: OrderedDict[bytes, Future[NDArray[np.int32]]] = OrderedDict()

    def submit(
        self,
        function: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Future[Result]:
        """Run on one of the encoder's threads, where `encode` may be called."""
        return self._pool.submit(function, *arguments, **options)

    def encode(self, audio: Any) -> NDArray[np.int32]:
        """int32 codes [num_frames, num_codebooks] of a clip; on a thread of the encoder's only.

        Args:
            audio: see `read_clip`; without a rate, at the codec's. Or a KeptClip of such.

        Raises:
            ValueError: naming the field.
        """
        if isinstance(audio, KeptClip):
            # Threads that come at the same time share one encoding, as for every other clip.
            if audio.codes is None:
                audio.codes = self.encode(audio.audio)
            return audio.codes
        samples, rate = read_clip(audio)
        key = hashlib.sha256(f"{rate}:{samples.shape}:".encode() + samples.tobytes()).digest()
        with self._lock:
            known = self._codes.get(key)
            if known is None:
                made: Future[NDArray[np.int32]] = Future()
                self._codes[key] = made
                if len(self._codes) > CACHED_CLIPS:
                    self._codes.popitem(last=False)
            else:
                self._codes.move_to_end(key)
        if known is not None:
            # Whoever makes it is running on another of the threads, so this ends.
            return known.result()
        try:
            made.set_result(self._encode(samples, rate))
        except BaseException as error:
            with self._lock:
                if self._codes.get(key) is made:
                    del self._codes[key]
            made.set_exception(error)
        return made.result()

    def _encode(self, samples: NDArray[np.float32], rate: float | None) -> NDArray[np.int32]:
        with self._loading:
            codec = self._load_codec()
        from_rate = codec.sample_rate if rate is None else rate
        if codec.num_channels > 1 and samples.shape[:-1] == (codec.num_channels,):
            channels = [resample(channel, from_rate, codec.sample_rate) for channel in samples]
            heard = np.stack(channels, axis=1)
        else:
            # Mixed to mono, which a codec of several channels gives each of them.
            heard = resample(samples, from_rate, codec.sample_rate)
        missing = max(0, codec.min_clip_samples - len(heard))
        heard = np.pad(heard, [(0, missing)] + [(0, 0)] * (heard.ndim - 1))
        codes: NDArray[np.int32] = codec.encode(torch.from_numpy(heard)).numpy()
        return codes


class PromptsAhead(Sequence[Any]):
    """Prompts whose audio is encoded before they are reached, a bounded number of them at a time.

    Args:
        prompts: as given to `LLM.generate`.
        encoder: keeps the codes until the prompts are built.
    """

    def __init__(self, prompts: Sequence[Any], encoder: ClipEncoder) -> None:
        self._prompts = prompts
        self._encoder = encoder

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: Any) -> Any:
        return self._prompts[index]

    def __iter__(self) -> Iterator[Any]:
        coming = iter(self._prompts)
        for prompt in islice(coming, min(2 * self._encoder.num_threads, MAX_AHEAD)):
            self._begin(prompt)
        for prompt in self._prompts:
            yield prompt
            for following in islice(coming, 1):
                self._begin(following)

    def _begin(self, prompt: Any) -> None:
        data = prompt.get("multi_modal_data") if isinstance(prompt, dict) else None
        clips = [data.get(name) for name in ("audio", "voice")] if isinstance(data, dict) else []
        for clip in clips:
            if clip is not None and not is_given_as_codes(clip):
                # What is wrong with it is said when the prompt is built.
                self._encoder.submit(self._encoder.encode, clip)


def is_given_as_codes(clip: Any) -> bool:
    """Whether a request gives a clip as its codes, {"codes": codes}, and not as samples."""
    return isinstance(clip, Mapping) and "codes" in clip


def _use_one_thread() -> None:
    """Keep PyTorch's operators on this thread, which may run on any core."""
    # One at a time: a second thread would take the first one's setting for that of the others.
    with _SETTING_THREADS:
        others = torch.get_num_threads()
        # Not torch.set_num_threads: upstream's CPU worker disables that in its process.
        torch._C.set_num_threads(1)
        # Threads that have not used PyTorch yet read the last setting; one of these puts it back.
        restorer = threading.Thread(target=torch._C.set_num_threads, args=(others,))
        restorer.start()
        restorer.join()
    if _CORES:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, _CORES)
