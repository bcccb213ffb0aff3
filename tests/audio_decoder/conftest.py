# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of acoustic decoding."""

from tests.codecs.conftest import checkpoint, load, one_thread  # noqa: F401
