# SPDX-License-Identifier: Apache-2.0
"""Old paths that the documentation gave; they go with the next release."""
