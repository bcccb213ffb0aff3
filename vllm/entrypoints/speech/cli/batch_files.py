# SPDX-License-Identifier: Apache-2.0
"""The files of `vllm run-batch`, read and written with what an upstream release has for that.

Up to 0.32 run-batch reads its input when the engine is there; later ones hold it open, since they
check its lines, as requests to models of text, before the engine is made.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from transformers import PreTrainedConfig

from vllm.entrypoints.launchers import run_batch
from vllm.unison.formats.registered_models import MODEL_TYPES
from vllm.unison.packaged_model import folder_of

upstream: Any = run_batch  # whose functions differ


def answers_any_line(model: str) -> bool:
    """Whether a model's batches answer a line that is wrong, and need no check before."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(folder_of(model))
    except (OSError, ValueError):  # upstream reports it where it loads the model
        return False
    return config.get("model_type") in MODEL_TYPES


async def read_lines(args: Namespace, opened: IO[str] | None) -> list[str]:
    """The lines of the input that are not empty; from the file that upstream holds open, if any."""
    text = await upstream.read_file(args.input_file) if opened is None else opened.read()
    return [line for line in text.splitlines() if line.strip()]


async def write_answers(args: Namespace, answers: Sequence[Any]) -> None:
    """Write the answers to the output, one JSON object a line."""
    if hasattr(upstream, "write_file"):
        await upstream.write_file(args.output_file, list(answers), args.output_tmp_dir)
        return
    async with upstream.batch_output_writer(args.output_file, args.output_tmp_dir) as file:
        for answer in answers:
            print(answer.model_dump_json(), file=file)


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """Show upstream's progress of so many requests; gives what to call when one is answered."""
    tracker = upstream.BatchProgressTracker()
    if hasattr(tracker, "submitted"):
        for _ in range(total):
            tracker.submitted()
        bar = tracker.pbar()
    else:
        bar = tracker.pbar(total)
    with bar:
        yield tracker.completed
