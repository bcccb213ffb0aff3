# SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m tools.fork VERB``."""

import sys

from tools.fork.cli import main

sys.exit(main())
