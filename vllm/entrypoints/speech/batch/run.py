# SPDX-License-Identifier: Apache-2.0
"""A batch from its input to its output: which rows are left, and who works them off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from vllm.entrypoints.speech.batch.output import Kind, OutputFolder
from vllm.entrypoints.speech.batch.results import Result
from vllm.entrypoints.speech.batch.rows import Row, RowsFile

Work = Callable[[Iterable[Row]], Iterator[Result]]
"""What works off rows, and yields each one's result, in any order."""


@dataclass(frozen=True)
class BatchSettings:
    """A batch.

    Attributes:
        rows: where they come from.
        output: folder that is written.
        kind: how audio is kept.
        rows_per_shard: rows that are committed at once.
        run: what else the outputs depend on, by the name of the option that says it.
    """

    rows: RowsFile
    output: Path
    kind: Kind
    rows_per_shard: int
    run: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """What a run has done.

    Attributes:
        num_rows: of the batch.
        num_new: rows that were done in this run.
        num_failed: those of them that have an error.
        audio_seconds: length of their audio.
        seconds: that it took.
    """

    num_rows: int
    num_new: int
    num_failed: int
    audio_seconds: float
    seconds: float

    def __str__(self) -> str:
        rate = self.audio_seconds / self.seconds if self.seconds else 0.0
        failed = f", {self.num_failed} with an error" if self.num_failed else ""
        before = self.num_rows - self.num_new
        kept = f" ({before} were done before)" if before else ""
        return (
            f"{self.num_new} of {self.num_rows} rows{kept}{failed}: {self.audio_seconds:.1f} s of "
            f"audio in {self.seconds:.1f} s, {rate:.2f} s of audio a second"
        )


def run_batch(batch: BatchSettings, make_work: Callable[[], Work], errors: IO[str]) -> Summary:
    """Do what is left of a batch.

    Args:
        batch: what is to be done.
        make_work: makes what works rows off; called if there are any left.
        errors: shows how far it is, if it is a terminal.

    Raises:
        ValueError, OSError: if the input cannot be read, or the output is another batch's.
        RuntimeError: if the output cannot be written, or rows are missing in the end.
    """
    num_rows, digest = batch.rows.describe()
    run = {**batch.run, "rows": num_rows, "digest of the input": digest}
    run |= {"--output-format": batch.kind, "--rows-per-shard": batch.rows_per_shard}
    output = OutputFolder(batch.output, num_rows, batch.kind, batch.rows_per_shard, run)
    begin, before = time.monotonic(), output.num_done
    try:
        if before < num_rows:
            work = make_work()
            begin = time.monotonic()
            left = (row for row in batch.rows if not output.is_done(row.index))
            with tqdm(total=num_rows, initial=before, unit="row", file=errors, disable=None) as bar:
                for result in work(left):
                    output.add(result)
                    bar.update()
                    rate = output.seconds / (time.monotonic() - begin)
                    bar.set_postfix_str(f"{rate:.1f} s of audio a second", refresh=False)
        output.finish()
    finally:
        output.close()
    return Summary(
        num_rows,
        num_rows - before,
        output.num_failed,
        output.seconds,
        time.monotonic() - begin,
    )
