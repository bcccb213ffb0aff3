# SPDX-License-Identifier: Apache-2.0
"""Development tools of the fork; not part of the installed package."""
