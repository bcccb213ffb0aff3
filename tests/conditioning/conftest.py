# SPDX-License-Identifier: Apache-2.0
"""These tests use one thread."""

from tests.support.threads import one_thread  # noqa: F401
