# SPDX-License-Identifier: Apache-2.0
"""What a short command sets up before it starts an engine in its own process."""

from __future__ import annotations

import logging
import os
import warnings


def prepare_process() -> None:
    """Settings that suit a short command; what the user has set in the environment stays."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # The package has set up its logging already.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    warnings.simplefilter("ignore", FutureWarning)
    import transformers

    transformers.utils.logging.disable_progress_bar()
