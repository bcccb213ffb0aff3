# SPDX-License-Identifier: Apache-2.0
"""The life of the patch set: fetch, apply, export, rebase, check.

Run as ``python -m tools.fork VERB``. It needs ``git``, the package ``packaging`` and, when
something has to be downloaded, pip, which downloads it the way the user's pip is configured.
"""
