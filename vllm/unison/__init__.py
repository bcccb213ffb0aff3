# SPDX-License-Identifier: Apache-2.0
"""Guided, multi-codebook audio generation: one folder per station of a request."""
