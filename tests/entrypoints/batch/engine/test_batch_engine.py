# SPDX-License-Identifier: Apache-2.0
"""A batch in this process: results that depend on their rows alone, and runs that are killed."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.entrypoints.batch.model import ENGINE, write_model, write_rows
from tests.entrypoints.batch.test_output import contents
from vllm.entrypoints.speech.batch.engine import BatchEngine
from vllm.entrypoints.speech.batch.output import MANIFEST
from vllm.entrypoints.speech.batch.requests import RowRules
from vllm.entrypoints.speech.batch.rows import Row, RowsFile
from vllm.entrypoints.speech.batch.run import BatchSettings, Work, run_batch
from vllm.entrypoints.speech.batch.settings import EngineSettings
from vllm.entrypoints.speech.cli import batch_commands, commands

NUM_ROWS, POISONED = 24, (5, 11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the rows, and of files that they name."""
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[BatchEngine]:
    """An engine with fewer places than there are rows."""
    model = write_model(folder / "model")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    settings = EngineSettings({"model": str(model), **ENGINE})
    made = BatchEngine(settings, RowRules("speak", folder, {"max_tokens": 8}, "tiny"), seed=3)
    yield made
    made.close()


@pytest.fixture(scope="module")
def rows(folder: Path) -> RowsFile:
    return write_rows(folder / "rows.jsonl", NUM_ROWS, POISONED)


def batch(rows: RowsFile, output: Path, kind: Any = "files") -> BatchSettings:
    return BatchSettings(rows, output, kind, 5, {})


@pytest.fixture(scope="module")
def undisturbed(
    engine: BatchEngine, rows: RowsFile, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What a run writes that nothing ends."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    summary = run_batch(batch(rows, output), lambda: engine.run, io.StringIO())
    assert (summary.num_new, summary.num_failed) == (NUM_ROWS, len(POISONED))
    assert summary.audio_seconds > 1 and f"{NUM_ROWS} of {NUM_ROWS} rows, 2 with" in str(summary)
    return contents(output)


def test_rows_are_files_and_entries(undisturbed: dict[str, bytes], folder: Path) -> None:
    entries = [json.loads(line) for line in undisturbed[MANIFEST].splitlines()]
    assert [entry["index"] for entry in entries] == list(range(NUM_ROWS))
    for entry in entries:
        if entry["index"] in POISONED:
            assert entry["error"].startswith("voice must be one of") and entry["path"] is None
            continue
        assert entry["error"] is None and entry["finish_reason"] == "length"
        samples, rate = soundfile.read(io.BytesIO(undisturbed[entry["path"]]))
        assert (len(samples) / rate, rate) == (entry["seconds"], entry["sample_rate"])
        assert np.abs(samples).max() > 0
    hashes = [entry["codes_sha256"] for entry in entries if entry["error"] is None]
    assert len(set(hashes)) == len(hashes)


def test_a_row_does_not_depend_on_the_others(
    engine: BatchEngine, rows: RowsFile, undisturbed: dict[str, bytes]
) -> None:
    chosen = [row for row in rows if row.index in (2, 17, 20)]
    for row in reversed(chosen):
        (result,) = engine.run([row])
        assert result.data == undisturbed[f"audio/0000{row.index // 5}/{row.index:09}.wav"]


def test_a_killed_run_goes_on_to_the_same_files(
    engine: BatchEngine, rows: RowsFile, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    child = os.fork()
    if child == 0:  # with the engine as it is
        try:
            run_batch(batch(rows, output), lambda: _killed_after(engine.run, 13), io.StringIO())
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (output / MANIFEST).exists()
    assert len(list((output / ".batch" / "manifest").iterdir())) < 13 / 5
    summary = run_batch(batch(rows, output), lambda: engine.run, io.StringIO())
    assert summary.num_new == NUM_ROWS - 13
    found = contents(output)
    assert found == undisturbed
    # Nothing is left to do, so no engine is made.
    again = run_batch(batch(rows, output), lambda: pytest.fail("made an engine"), io.StringIO())
    assert again.num_new == 0 and contents(output) == found


def _killed_after(work: Work, count: int) -> Work:
    def killed(rows: Any) -> Any:
        for number, result in enumerate(work(rows)):
            if number == count:
                os.kill(os.getpid(), signal.SIGKILL)
            yield result

    return killed


def test_a_failure_in_the_engine_is_its_rows_alone(
    engine: BatchEngine, rows: RowsFile, undisturbed: dict[str, bytes], monkeypatch: Any
) -> None:
    """One that no check foresees."""
    real = engine._engine.renderer.render_cmpl

    def broken(prompts: Any) -> Any:
        if "row 3" in str(prompts[0]):
            raise RuntimeError("out of cheese")
        return real(prompts)

    monkeypatch.setattr(engine._engine.renderer, "render_cmpl", broken)
    results = {r.index: r for r in engine.run([row for row in rows if row.index < 5])}
    assert results[3].entry["error"] == "out of cheese" and results[3].data == b""
    for index in (0, 1, 2, 4):
        assert results[index].data == undisturbed[f"audio/00000/{index:09}.wav"]
    assert engine.is_idle


def test_long_audio_is_cut_and_heard_in_parts(folder: Path, engine: BatchEngine) -> None:
    noise = np.random.default_rng(0).standard_normal(16000 * 4).astype(np.float32) * 0.1
    soundfile.write(folder / "long.wav", noise, 16000)
    soundfile.write(folder / "short.wav", noise[:8000], 16000)
    rules = engine._rules
    engine._rules = RowRules("transcribe", folder, {"max_tokens": 6}, "tiny")
    try:
        found = list(
            engine.run(
                [
                    Row(0, {"path": "long.wav"}),
                    Row(1, {"path": "short.wav", "id": 7}),
                    Row(2, {"path": "none.wav"}),
                ]
            )
        )
    finally:
        engine._rules = rules
    entries = {result.index: result.entry for result in found}
    assert entries[0]["seconds"] == 4.0 and entries[0]["source"] == "long.wav"
    assert entries[1]["id"] == 7 and entries[1]["finish_reason"] in ("stop", "length")
    assert len(entries[0]["text"]) > len(entries[1]["text"]) > 0
    assert entries[2]["error"].startswith("path: No such file or directory")


def test_the_commands_take_their_options(
    engine: BatchEngine,
    undisturbed: dict[str, bytes],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the module's engine in place of one of their own."""
    monkeypatch.setattr(batch_commands, "prepare_process", lambda verbose: None)
    monkeypatch.setattr(batch_commands, "_work", lambda args, settings, rules: engine.run)
    output = str(tmp_path / "out")
    given = ["speak-batch", str(folder / "rows.jsonl"), output, "--rows-per-shard", "5"]
    fields = ["--model", "tiny", "--max-tokens", "8"]
    run_command(*given, *fields, "--seed", "3")
    assert f"{NUM_ROWS} of {NUM_ROWS} rows, 2 with an error" in capsys.readouterr().out
    found = contents(tmp_path / "out")
    for name, data in undisturbed.items():
        assert name == ".batch/run.json" or found[name] == data
    with pytest.raises(SystemExit, match=r"^error: OUTPUT .* a batch with --seed 3, not 4: "):
        run_command(*given, *fields, "--seed", "4")
    for options, words in (
        (("--temperature", "3"), "^error: temperature must be at most 2, not 3.0"),
        (("--rows-per-shard", "0"), "^error: --rows-per-shard must be at least 1, not 0"),
    ):
        with pytest.raises(SystemExit, match=words):
            run_command(*given[:2], str(tmp_path / "other"), *options)
    with pytest.raises(SystemExit, match=r"^error: INPUT must be a file of"):
        run_command("transcribe-batch", str(folder / "none"), output)
    assert not (tmp_path / "other").exists()


def run_command(name: str, *arguments: str) -> None:
    (command,) = (c for c in commands.cmd_init() if c.name == name)
    parser = command.subparser_init(commands._Only())  # type: ignore[arg-type]
    command.cmd(parser.parse_args(list(arguments)))
