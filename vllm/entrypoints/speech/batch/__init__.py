# SPDX-License-Identifier: Apache-2.0
"""Offline batches: the rows of a file, spoken or transcribed into a folder."""
