# SPDX-License-Identifier: Apache-2.0
"""The multi-stream sampler: mask, temperature, top-k, top-p and seeded sampling of all streams."""

from vllm.multistream.sampling.operator import (
    MAX_CANDIDATES,
    load_extension,
    multistream_sample,
    sample_reference,
)

__all__ = ["MAX_CANDIDATES", "load_extension", "multistream_sample", "sample_reference"]
