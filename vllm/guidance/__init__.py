# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance: requests of several lanes, scheduled as one sequence group."""
