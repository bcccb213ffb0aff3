# SPDX-License-Identifier: Apache-2.0
"""An engine that computes as another processor would; `benchmark_numerics.py` starts it.

    python benchmarks/numerics_variant.py --model unison-default --dtype bfloat16 --processor avx2

What a processor lacks is hidden before anything asks for it: from oneDNN and PyTorch by their
environment variables, from the fork's own kernels by what PyTorch says of the processor.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.variant_process import serve


@dataclass(frozen=True)
class Processor:
    """What a processor has not, that this one may have.

    Attributes:
        environment: variables by which libraries are told.
        hidden: functions of `torch.cpu` that answer no.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    hidden: Sequence[str] = ()


_NO_AMX = ("_is_amx_tile_supported", "_is_amx_fp16_supported")
PROCESSORS = {
    "this": Processor(),
    "avx512": Processor(
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, (*_NO_AMX, "_is_avx512_bf16_supported")
    ),
    "avx2": Processor(
        {
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        },
        (*_NO_AMX, "_is_avx512_bf16_supported", "_is_avx512_supported"),
    ),
}
"""Stand-ins by name. AMX cannot be stood in for: a processor has it or not."""


class Variant:
    """The engine.

    Args:
        model: as `LLM` takes it.
        dtype: of the computation.
        max_num_seqs: of a batch; a guided sentence takes two.
    """

    def __init__(self, model: str, dtype: Any, max_num_seqs: int) -> None:
        from vllm import LLM

        self._llm = LLM(
            model,
            dtype=dtype,
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=max_num_seqs,
            disable_log_stats=True,
        )

    def speak(self, sentences: Sequence[str], voices: Sequence[str]) -> dict[str, Any]:
        """Greedy speech with the model's own guidance, voices in turn.

        Returns:
            ``codes`` and ``samples`` of each sentence, ``sample_rate``, and ``cpu_seconds`` of all.
        """
        from vllm import SamplingParams
        from vllm.unison.model.spec import multistream_spec

        spec = multistream_spec(self._llm.model_config)
        assert spec is not None
        fields = {**spec.generation_defaults["text_to_speech"], "temperature": 0.0}
        prompts: list[Any] = [
            {"prompt": text, "mm_processor_kwargs": {"voice": voices[index % len(voices)]}}
            for index, text in enumerate(sentences)
        ]
        started = time.process_time()
        outputs = self._llm.generate(prompts, SamplingParams(**fields), use_tqdm=False)
        seconds = time.process_time() - started
        audios = [output.outputs[0].audio for output in outputs]
        return {
            "codes": [[] if audio is None else audio.codes.tolist() for audio in audios],
            "samples": [[] if audio is None else audio.samples.tolist() for audio in audios],
            "sample_rate": next(audio.sample_rate for audio in audios if audio is not None),
            "cpu_seconds": seconds,
        }

    def transcribe(self, clips: Sequence[Sequence[float]], sample_rate: int) -> list[str]:
        """What the model hears."""
        import numpy as np

        from vllm import SamplingParams

        prompts: list[Any] = [
            {
                "prompt": "",
                "multi_modal_data": {"audio": (np.asarray(clip, np.float32), sample_rate)},
            }
            for clip in clips
        ]
        params = SamplingParams(temperature=0.0, max_tokens=200)
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [output.outputs[0].text.strip() for output in outputs]


def main() -> None:
    """Serve a variant."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="unison-default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--processor", choices=list(PROCESSORS), default="this")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    options = parser.parse_args()
    processor = PROCESSORS[options.processor]
    os.environ.update(processor.environment)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import torch

    for name in processor.hidden:
        setattr(torch.cpu, name, lambda: False)
    serve(lambda: Variant(options.model, options.dtype, options.max_num_seqs))


if __name__ == "__main__":
    main()
