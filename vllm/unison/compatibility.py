# SPDX-License-Identifier: Apache-2.0
"""What a multi-stream model cannot be combined with, refused when the engine is configured."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vllm.unison.audio_decoder.chunk_schedule import ChunkSchedule
from vllm.unison.model.spec import multistream_spec

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ASYNC_ON_CPU = "UNISON_CPU_ASYNC_SCHEDULING"
"""Set to 1 to let multi-stream models schedule asynchronously on the CPU (upstream never does)."""


def async_scheduling_on_cpu(vllm_config: VllmConfig) -> bool:
    """Whether the CPU platform schedules asynchronously; only multi-stream models may ask."""
    if multistream_spec(vllm_config.model_config) is None:
        return False
    return os.environ.get(ASYNC_ON_CPU, "0") == "1"


def check_multistream_support(vllm_config: VllmConfig) -> None:
    """Refuse a configuration that a multi-stream model does not support.

    Raises:
        ValueError: naming the option.
    """
    model_config = vllm_config.model_config
    if multistream_spec(model_config) is None:
        return
    parallel = vllm_config.parallel_config
    refused = {
        "speculative_config": vllm_config.speculative_config is not None,
        "pipeline_parallel_size > 1": parallel.pipeline_parallel_size > 1,
        "decode_context_parallel_size > 1": parallel.decode_context_parallel_size > 1,
        "prefill_context_parallel_size > 1": parallel.prefill_context_parallel_size > 1,
        "enable_dbo": parallel.use_ubatching,
        "lora_config": vllm_config.lora_config is not None,
        "kv_transfer_config": vllm_config.kv_transfer_config is not None,
        "ec_transfer_config": vllm_config.ec_transfer_config is not None,
        "enable_prompt_embeds": model_config.enable_prompt_embeds,
        "enable_return_routed_experts": vllm_config.aux_output_config.enabled,
        "logits_processors": bool(model_config.logits_processors),
        "runner='pooling'": model_config.runner_type != "generate",
        "quantization": model_config.quantization is not None,
    }
    for option, is_set in refused.items():
        if is_set:
            raise ValueError(f"{option} is not supported for multi-stream models")
    ChunkSchedule.from_config(vllm_config.additional_config)
