# SPDX-License-Identifier: Apache-2.0
"""Multi-stream (multi-codebook) generation: layouts, sampling, codecs."""
