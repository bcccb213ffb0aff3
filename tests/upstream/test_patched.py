# SPDX-License-Identifier: Apache-2.0
"""What patches mend in upstream's own functions."""

from vllm.triton_utils.dispatcher import register_kernels


def test_engines_start_in_processes_that_have_numba() -> None:
    """Upstream's search through all modules failed on an object of numba's, whose attributes are
    functions of a library; audio programs import numba with librosa."""
    import numba

    assert numba.__version__
    register_kernels({})
