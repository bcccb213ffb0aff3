# SPDX-License-Identifier: Apache-2.0
"""Centers out of scikit-learn's k-means models as joblib writes them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import xeus
from vllm.unison.formats.kmeans_file import read_cluster_centers

FILE = xeus.FOLDER / "model" / xeus.CENTERS


def test_centers_are_those_that_scikit_learn_found() -> None:
    centers = read_cluster_centers(FILE)
    assert centers.dtype == torch.float32
    np.testing.assert_array_equal(centers.numpy(), xeus.expected()["centers"])


def test_files_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    data = FILE.read_bytes()
    for length in [*range(0, 400, 7), *range(400, len(data), 397)]:
        (tmp_path / "cut.mdl").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut.mdl is not a k-means model that joblib wrote"):
            read_cluster_centers(tmp_path / "cut.mdl")
    centers = xeus.expected()["centers"]
    (tmp_path / "cut.mdl").write_bytes(data[: data.index(centers[0].tobytes()) + 100])
    with pytest.raises(ValueError, match=rf"an array of {centers.nbytes} bytes is cut off"):
        read_cluster_centers(tmp_path / "cut.mdl")


def test_other_objects_are_refused(tmp_path: Path) -> None:
    for thing in ({"cluster_centers_": [[1.0]]}, [1.0], np.zeros((2, 2)), "KMeans"):
        (tmp_path / "other.mdl").write_bytes(pickle.dumps(thing))
        with pytest.raises(ValueError, match=r"other.mdl must hold a k-means model, not"):
            read_cluster_centers(tmp_path / "other.mdl")
    for data in (b"", b"\x78\x9c compressed", b"PK\x03\x04"):
        (tmp_path / "other.mdl").write_bytes(data)
        with pytest.raises(ValueError, match=r"it does not begin like a pickle"):
            read_cluster_centers(tmp_path / "other.mdl")


def _with(name: bytes, other: bytes, to: Path) -> Path:
    data = FILE.read_bytes()
    assert name in data and len(name) == len(other)
    to.write_bytes(data.replace(name, other))
    return to


def test_models_without_centers_are_refused(tmp_path: Path) -> None:
    file = _with(b"cluster_centers_", b"cluster_medians_", tmp_path / "km.mdl")
    with pytest.raises(ValueError, match=r"km.mdl: cluster_centers_ must be a matrix of floating"):
        read_cluster_centers(file)
    file = _with(b"MiniBatchKMeans", b"GaussianMixture", tmp_path / "km.mdl")
    with pytest.raises(ValueError, match=r"not 'sklearn.cluster._kmeans.GaussianMixture'"):
        read_cluster_centers(file)
    nan = np.float32(np.nan).tobytes()
    first = xeus.expected()["centers"][0, 0].tobytes()
    with pytest.raises(ValueError, match=r"cluster_centers_ must be finite"):
        read_cluster_centers(_with(first, nan, tmp_path / "km.mdl"))


class _Executes:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nothing_is_executed(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "km.mdl"
    file.write_bytes(pickle.dumps(_Executes(), protocol))
    with pytest.raises(ValueError, match=r"km.mdl is not a k-means model .*: it names posix.mkdir"):
        read_cluster_centers(file)
    assert not Path("executed").exists()
    # Nor what the accepted libraries could be asked to do.
    file.write_bytes(b"\x80\x04cnumpy\nsave\n(S'executed.npy'\nI1\ntR.")
    with pytest.raises(ValueError, match=r"must hold a k-means model, not 'numpy.save'"):
        read_cluster_centers(file)
    assert not Path("executed.npy").exists()
