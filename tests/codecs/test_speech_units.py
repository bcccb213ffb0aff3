# SPDX-License-Identifier: Apache-2.0
"""XEUS and the units of its states, against ESPnet's own classes and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import xeus
from vllm.unison.codecs import speech_units
from vllm.unison.codecs.speech_units import SpeechUnits, load_speech_units
from vllm.unison.codecs.xeus import XeusEncoder
from vllm.unison.formats.kmeans_file import read_cluster_centers
from vllm.unison.formats.xeus_format import read_xeus_format, read_xeus_weights

MODEL = xeus.FOLDER / "model"


@pytest.fixture(scope="module")
def encoder() -> XeusEncoder:
    shape = read_xeus_format(MODEL / xeus.SETTINGS)
    made = XeusEncoder(shape).eval()
    made.load_state_dict(read_xeus_weights(MODEL / xeus.WEIGHTS, shape))
    return made


@pytest.fixture(scope="module")
def units() -> SpeechUnits:
    return load_speech_units(str(xeus.FOLDER))


@torch.inference_mode()
def test_states_are_those_of_espnet(encoder: XeusEncoder) -> None:
    states = encoder(xeus.clip())
    np.testing.assert_allclose(states.numpy(), xeus.expected()["states"], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_a_clips_level_does_not_matter(encoder: XeusEncoder) -> None:
    states = encoder(0.25 + 3 * xeus.clip())
    np.testing.assert_allclose(states.numpy(), xeus.expected()["states"], rtol=0, atol=1e-3)


@given(num_samples=st.integers(0, 3000))
@torch.inference_mode()
def test_frames_are_counted_as_they_are_made(encoder: XeusEncoder, num_samples: int) -> None:
    num_frames = encoder.num_frames(num_samples)
    assert (num_frames > 0) == (num_samples >= encoder.shape.min_samples)
    if num_frames:
        assert encoder(xeus.clip()[:num_samples]).shape == (num_frames, 32)


def test_units_are_those_of_espnet(units: SpeechUnits, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = xeus.expected()["units"]
    assert len(set(expected.tolist())) > 5 and units.num_units == xeus.NUM_UNITS
    for frames_at_once in (4096, 4):
        monkeypatch.setattr(speech_units, "_FRAMES_AT_ONCE", frames_at_once)
        found = units.units(xeus.clip())
        assert found.dtype == torch.int32
        assert found.tolist() == expected.tolist()


def test_a_center_is_its_own_unit(units: SpeechUnits) -> None:
    centers = torch.from_numpy(xeus.expected()["centers"])
    assert units._nearest(centers).tolist() == list(range(xeus.NUM_UNITS))


def test_the_shortest_clip_has_one_unit(units: SpeechUnits) -> None:
    assert units.min_samples == 400
    assert units.units(xeus.clip()[:399]).shape == (0,)
    assert units.units(xeus.clip()[:400]).shape == (1,)


def test_the_published_files_are_found_in_their_folder_or_alone(tmp_path: Path) -> None:
    folder = xeus.copy_model(tmp_path / "published" / "model")
    (folder / "xeus_checkpoint_old.pth").write_bytes(b"older")
    (folder / "km_other.mdl").write_bytes(b"other")
    for place in (folder, folder.parent):
        load_speech_units(str(place))
    for name in (xeus.WEIGHTS, xeus.CENTERS):
        (folder / name).rename(folder / f"mine{name[-4:]}")
        with pytest.raises(ValueError, match=r"one file"):
            load_speech_units(str(folder))
        for other in ("xeus_checkpoint_old.pth", "km_other.mdl"):
            if other.endswith(name[-4:]):
                (folder / other).unlink()
    assert load_speech_units(str(folder)).num_units == xeus.NUM_UNITS
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"must hold the encoder's settings, config.yaml"):
        load_speech_units(str(folder))


def test_names_of_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_units, "snapshot_download", xeus.no_download)
    message = r"'nobody/nothing', must be a folder, or a hub id .*: the hub cannot be reached$"
    with pytest.raises(ValueError, match=message):
        load_speech_units("nobody/nothing")


def test_centers_of_other_states_are_refused(encoder: XeusEncoder) -> None:
    centers = read_cluster_centers(MODEL / xeus.CENTERS)
    with pytest.raises(ValueError, match="must have 32 features, as the encoder's states, not 31"):
        SpeechUnits(encoder, centers[:, :31])
