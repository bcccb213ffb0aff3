# SPDX-License-Identifier: Apache-2.0
"""The multi-stream sampler: merge lanes, mask, temperature, top-k, top-p and seeded sampling."""

from vllm.multistream.sampling.operator import (
    MAX_CANDIDATES,
    guided_multistream_sample,
    load_extension,
    multistream_sample,
    sample_reference,
)

__all__ = [
    "MAX_CANDIDATES",
    "guided_multistream_sample",
    "load_extension",
    "multistream_sample",
    "sample_reference",
]
