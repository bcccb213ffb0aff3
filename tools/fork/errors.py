# SPDX-License-Identifier: Apache-2.0
"""The one error type that a verb reports to the user without a traceback."""


class ForkError(Exception):
    """Something the user has to know or repair; the message says what and how."""
