# SPDX-License-Identifier: Apache-2.0
"""Models for engines with and without steady decoding."""

from tests.guidance.engine.conftest import model, one_thread  # noqa: F401
