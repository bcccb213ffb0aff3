# SPDX-License-Identifier: Apache-2.0
"""The cluster centers in a k-means model of scikit-learn's, as joblib writes it.

Such a file is a pickle with the arrays' bytes between its instructions. It is read here without
executing anything and without either library: classes and functions that it names are not imported,
and what it would make of them is kept as what it would be made of. Of that the arrays are read.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

_MODULES = ("sklearn", "joblib", "numpy", "scipy", "copyreg", "_codecs")
"""A k-means model names classes and functions of these only."""

_ARRAY = "joblib.numpy_pickle.NumpyArrayWrapper"
_DTYPE = "numpy.dtype"
_MODEL = re.compile(r"sklearn\.cluster\.(.*\.)?(MiniBatch)?KMeans")
_CENTERS = "cluster_centers_"
_NUMBERS = re.compile(r"[biuf]\d{1,2}")


def read_cluster_centers(file: Path) -> torch.Tensor:
    """The centers of a k-means model.

    Args:
        file: of joblib.dump's, without compression.

    Returns:
        float32 [num_clusters, num_features].

    Raises:
        ValueError: naming the file, if it holds anything else.
    """
    try:
        found = _Reader(file).load()
    # A damaged or made-up pickle may fail in any instruction, with errors that have no class in
    # common.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file.name} is not a k-means model that joblib wrote without compression: {reason}"
        ) from error
    name, state = getattr(found, "of", ""), getattr(found, "state", None)
    if not _MODEL.fullmatch(name) or not isinstance(state, dict):
        raise ValueError(f"{file.name} must hold a k-means model, not {name or type(found)!r}")
    centers = state.get(_CENTERS)
    if not isinstance(centers, np.ndarray) or centers.ndim != 2 or centers.dtype.kind != "f":
        raise ValueError(f"{file.name}: {_CENTERS} must be a matrix of floating point numbers")
    if not np.isfinite(centers).all():
        raise ValueError(f"{file.name}: {_CENTERS} must be finite, not NaN or infinity")
    return torch.from_numpy(centers.astype(np.float32))


class _Recorded:
    """What a pickle would make of a class or function that is not imported.

    Attributes:
        of: name of the class or function.
        arguments: that it would be called with.
        state: that the object would be given afterwards.
    """

    of: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **_: Any) -> _Recorded:
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


_ReaderInPython: Any = pickle._Unpickler
"""The one in C does not tell where it is in the file."""


class _Reader(_ReaderInPython):
    """Reads a pickle with joblib's arrays in it."""

    dispatch: ClassVar[dict[int, Any]]

    def __init__(self, file: Path) -> None:
        data = file.read_bytes()
        if not data.startswith(pickle.PROTO):
            raise ValueError("it does not begin like a pickle")
        self._file = io.BytesIO(data)
        super().__init__(self._file)

    def find_class(self, module: str, name: str) -> type[_Recorded]:
        """A class of its own for each that the file names."""
        if module.split(".")[0] not in _MODULES:
            raise ValueError(f"it names {module}.{name}, which such a model has not")
        return type(name, (_Recorded,), {"of": f"{module}.{name}"})

    def load_build(self) -> None:
        """Give an object its state; the bytes of an array follow its description."""
        super().load_build()
        described = self.stack[-1]
        if isinstance(described, _Recorded) and described.of == _ARRAY:
            self.stack[-1] = self._array(described.state)

    def _array(self, described: Any) -> NDArray[Any]:
        shape = tuple(described["shape"])
        dtype = _dtype(described["dtype"])
        if described.get("numpy_array_alignment_bytes") is not None:
            # A byte says how many follow it to fill up.
            (fill,) = self._file.read(1)
            self._file.read(fill)
        length = math.prod(shape) * dtype.itemsize
        data = self._file.read(length) if 0 <= length <= len(self._file.getbuffer()) else b""
        if len(data) != length:
            raise ValueError(f"an array of {length} bytes is cut off")
        return np.frombuffer(data, dtype).reshape(shape, order=described["order"])


_Reader.dispatch = {**_Reader.dispatch, pickle.BUILD[0]: _Reader.load_build}


def _dtype(recorded: Any) -> np.dtype[Any]:
    """The type of an array's numbers."""
    if not isinstance(recorded, _Recorded) or recorded.of != _DTYPE or not recorded.arguments:
        raise ValueError("an array's dtype is not numpy's")
    code = str(recorded.arguments[0])
    order = recorded.state[1] if isinstance(recorded.state, tuple) else "|"
    if not _NUMBERS.fullmatch(code) or order not in ("<", ">", "|", "="):
        raise ValueError(f"an array of {code!r} is not one of numbers")
    return np.dtype(order + code)
