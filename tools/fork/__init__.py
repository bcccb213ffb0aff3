# SPDX-License-Identifier: Apache-2.0
"""The life of the patch set: fetch, apply, export, rebase, check.

Run as ``python -m tools.fork VERB``. Importing this package needs nothing but the standard library
and ``git``; pip is used, when something has to be downloaded, to find it the way the user's pip is
configured.
"""
