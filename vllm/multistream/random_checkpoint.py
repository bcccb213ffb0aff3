# SPDX-License-Identifier: Apache-2.0
"""The old path of `vllm.unison.testing.random_checkpoint`."""

import warnings

from vllm.unison.testing.random_checkpoint import *  # noqa: F403

warnings.warn(
    "vllm.multistream.random_checkpoint is now vllm.unison.testing.random_checkpoint; the old path "
    "goes with the next release",
    DeprecationWarning,
    stacklevel=2,
)
