# SPDX-License-Identifier: Apache-2.0
"""Units of speech: each frame's nearest center among those of XEUS's states."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from vllm.unison.codecs.xeus import XeusEncoder
from vllm.unison.formats.espnet_checkpoint import checkpoint_file
from vllm.unison.formats.espnet_settings import CONFIG_FILE
from vllm.unison.formats.kmeans_file import read_cluster_centers
from vllm.unison.formats.xeus_format import SAMPLE_RATE, read_xeus_format, read_xeus_weights

FOLDER = "model"
"""In which a repository of ESPnet's has its files."""

WEIGHTS_FILE, CENTERS_FILE = "xeus_checkpoint_new.pth", "km_opus_lm.mdl"
"""What OpusLM was trained with. The repository has older weights beside them."""

_FRAMES_AT_ONCE = 4096
"""Frames whose distances to all centers are in memory at a time."""


class SpeechUnits:
    """Gives clips' units.

    Args:
        encoder: put into eval mode.
        centers: float32 [num_units, hidden_size], a unit's in each row.

    Attributes:
        sample_rate: of clips, in Hz.
        samples_per_frame: samples from one frame to the next.
        min_samples: of the shortest clip that has a unit.
        num_units: a unit lies in [0, num_units - 1].

    Raises:
        ValueError: if centers are not of the encoder's states.
    """

    def __init__(self, encoder: XeusEncoder, centers: torch.Tensor) -> None:
        if centers.shape[1] != encoder.shape.hidden_size:
            raise ValueError(
                f"the centers of units must have {encoder.shape.hidden_size} features, as the "
                f"encoder's states, not {centers.shape[1]}"
            )
        self._encoder = encoder.eval().requires_grad_(False)
        self._centers = centers.T
        self._squares = self._centers.square().sum(0, keepdim=True)
        self.sample_rate = SAMPLE_RATE
        self.samples_per_frame = encoder.shape.samples_per_frame
        self.min_samples = encoder.shape.min_samples
        self.num_units = len(centers)

    @torch.inference_mode()
    def units(self, samples: torch.Tensor) -> torch.Tensor:
        """int32 [num_frames] units of a clip; the lowest of those that are equally near.

        Args:
            samples: floating point [num_samples] at `sample_rate`, on any device. Shorter than
                `min_samples` it has no units.
        """
        device = self._centers.device
        if len(samples) < self.min_samples:
            return torch.empty(0, dtype=torch.int32, device=device)
        states = self._encoder(samples.to(device, torch.float32))
        return torch.cat([self._nearest(some) for some in states.split(_FRAMES_AT_ONCE)])

    def _nearest(self, states: torch.Tensor) -> torch.Tensor:
        """int32 [num_frames] of states [num_frames, hidden_size]."""
        # In ESPnet's order of operations, so that frames between two centers fall to the same one.
        distances = states.square().sum(1, keepdim=True) - 2 * (states @ self._centers)
        return (distances + self._squares).argmin(dim=1).to(torch.int32)


def load_speech_units(
    name_or_path: str, *, device: torch.device | str = "cpu", revision: str | None = None
) -> SpeechUnits:
    """Load XEUS and the centers of its units, as published.

    Args:
        name_or_path: a hub id, or a folder with the published files, in it or in its folder
            `model`: config.yaml, the weights (xeus_checkpoint_new.pth, or else the only *.pth) and
            the centers (km_opus_lm.mdl, or else the only *.mdl).
        device: where the computation runs, in float32.
        revision: of a hub id.

    Raises:
        ValueError: naming what is missing or not as it should be.
    """
    folder = _folder(name_or_path, revision)
    shape = read_xeus_format(folder / CONFIG_FILE)
    with torch.device("meta"):
        encoder = XeusEncoder(shape)
    weights = folder / WEIGHTS_FILE
    file = weights if weights.is_file() else checkpoint_file(folder)
    try:
        tensors = read_xeus_weights(file, shape)
    except ValueError as error:
        raise ValueError(f"{name_or_path!r}: {file.name}: {error}") from error
    encoder.load_state_dict(tensors, assign=True)
    centers = read_cluster_centers(_centers_file(folder))
    return SpeechUnits(encoder.to(device), centers.to(device))


def _folder(name_or_path: str, revision: str | None) -> Path:
    """Where the published files are."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        files = [f"{FOLDER}/{name}" for name in (CONFIG_FILE, WEIGHTS_FILE, CENTERS_FILE)]
        try:
            folder = Path(snapshot_download(name_or_path, revision=revision, allow_patterns=files))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the encoder of speech units, {name_or_path!r}, must be a folder, or a hub id "
                f"that is in the cache or can be downloaded: {reason}"
            ) from error
    inner = folder / FOLDER
    folder = inner if inner.is_dir() else folder
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} must hold the encoder's settings, {CONFIG_FILE}")
    return folder


def _centers_file(folder: Path) -> Path:
    if (folder / CENTERS_FILE).is_file():
        return folder / CENTERS_FILE
    found = sorted(folder.glob("*.mdl"))
    if len(found) != 1:
        names = [file.name for file in found]
        raise ValueError(
            f"{folder} must hold the centers of units, {CENTERS_FILE}, or one file *.mdl, "
            f"not {names or 'none'}"
        )
    return found[0]
