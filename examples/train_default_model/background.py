# SPDX-License-Identifier: Apache-2.0
"""Makes the default model in what time other programs leave, for as long as it is let.

    python examples/train_default_model/background.py --folder build/default_model

Speech, codec and language model are made at once: the language model learns to read from the
teachers' phones before the codec is ready. What fails is started again, and all of it goes on where
it stopped when this is killed and run again. `export.py` writes a checkpoint at any time.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from corpus import all_shards
from layout import SPEAKERS
from progress import last_step
from pronunciation import write_lexicon
from synthesize import HELD_OUT_SETS, VOICES, seconds_of
from texts import write_texts
from train_decoder import ADAPTING_STEPS
from train_decoder import LOSS as DECODER_LOSS

SCRIPTS = Path(__file__).parent
ENOUGH_SHARDS = 8
"""Shards of speech with which the language model begins."""

PITCH_SHARDS = 16
"""Shards of each voice whose pitch is found, and that the decoder learns from."""

_PAUSE = 20.0
"""Seconds between looks at what runs, and before what failed is tried again."""


def give_way() -> None:
    """Let this process and those that it starts compute only while nobody else wants to."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def give_way_as_session(leader: int) -> None:
    """The same for a session: Linux may share processors among sessions first.

    Args:
        leader: its process.
    """
    group = Path(f"/proc/{leader}/autogroup")
    if group.exists():
        group.write_text("19")


@dataclass
class Job:
    """A program that is run again until it ends well.

    Attributes:
        name: of its log file.
        command: program and arguments.
        ready: whether it can begin.
        wanted: whether there is something left to do, asked whenever it does not run; None runs
            it until it ends well once.
        threads: of its computations.
    """

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    wanted: Callable[[], bool] | None = None
    threads: int = 1


class Jobs:
    """Runs jobs beside each other.

    Args:
        jobs: in the order in which they are looked at.
        logs: folder for what they print.

    Attributes:
        running: processes by the names of their jobs.
    """

    def __init__(self, jobs: Sequence[Job], logs: Path) -> None:
        self._jobs, self._logs = jobs, logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._not_before: dict[str, float] = {}
        self._ended: set[str] = set()

    def look(self, now: float) -> bool:
        """Start what can begin; whether anything runs or is wanted.

        Args:
            now: seconds, of any clock.
        """
        wanted = False
        for job in self._jobs:
            process = self.running.get(job.name)
            if process is not None and process.poll() is None:
                wanted = True
                continue
            if process is not None:
                del self.running[job.name]
                if process.returncode:
                    print(f"{job.name} failed ({process.returncode}), see {self._log(job)}")
                    self._not_before[job.name] = now + _PAUSE
                else:
                    self._ended.add(job.name)
            if not (job.name not in self._ended if job.wanted is None else job.wanted()):
                continue
            wanted = True
            if job.ready() and now >= self._not_before.get(job.name, now):
                self._start(job)
        return wanted

    def _log(self, job: Job) -> Path:
        return self._logs / f"{job.name}.log"

    def _start(self, job: Job) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
        with self._log(job).open("ab") as log:
            process = subprocess.Popen(
                job.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        give_way_as_session(process.pid)
        self.running[job.name] = process

    def stop(self) -> None:
        """End all that runs."""
        for process in self.running.values():
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.running.values():
            process.wait()


def jobs_of(
    folder: Path, hours: float, codec_steps: int, decoder_steps: int, steps: int
) -> list[Job]:
    """The stages of the training after the texts.

    Args:
        folder: of the training.
        hours: of speech.
        codec_steps, decoder_steps, steps: of the codec's training, of its decoder's after that,
            and of the language model's.
    """

    def python(script: str, *arguments: object) -> list[str]:
        arguments = ("--folder", folder.resolve(), *arguments)
        return [sys.executable, str(SCRIPTS / script), *map(str, arguments)]

    def shards(voice: str) -> list[str]:
        return [f"{voice}/{stem.name}" for stem in all_shards(folder, voice)]

    held_out = [f"{part}/{voice}" for part, voices in HELD_OUT_SETS.items() for voice in voices]

    def have(kind: str, names: Sequence[str], suffix: str) -> bool:
        return all((folder / kind / f"{name}{suffix}").exists() for name in names)

    def spoken() -> list[str]:
        return [name for voice in VOICES for name in shards(voice)]

    def speech_is_complete() -> bool:
        return have("speech", held_out, ".jsonl") and seconds_of(folder) >= hours * 3600

    def all_speak() -> bool:
        return all(shards(voice) for voice in VOICES)

    def with_pitch() -> list[str]:
        return [name for voice in VOICES for name in shards(voice)[:PITCH_SHARDS]]

    def codec_is_complete() -> bool:
        return (folder / "codec" / "config.json").exists()

    def has_learned() -> bool:
        return last_step(folder / "language_model_loss.jsonl") >= steps

    def has_filtered() -> bool:
        return last_step(folder / f"{DECODER_LOSS}.jsonl") >= decoder_steps

    def spoken_with() -> list[str]:
        return [name for name in with_pitch() if name.split("/")[0] in SPEAKERS]

    learn = python("train_language_model.py", "--steps", steps, "--cooldown", steps // 10)
    return [
        Job(
            "speech",
            python("synthesize.py", "--hours", hours, "--processes", 1),
            lambda: True,
            lambda: not speech_is_complete(),
        ),
        Job(
            "codec",
            python("train_codec.py", "--steps", codec_steps),
            all_speak,
            lambda: not codec_is_complete(),
        ),
        Job(
            "codes",
            python("encode.py"),
            lambda: codec_is_complete() and have("speech", held_out, ".jsonl"),
            lambda: not have("codes", [*held_out, *spoken()], ".npz"),
        ),
        Job(
            "pitch",
            python("pitch.py", "--shards", PITCH_SHARDS),
            all_speak,
            lambda: not have("pitch", with_pitch(), ".npz"),
        ),
        Job(
            "decoder",
            python("train_decoder.py", "--steps", decoder_steps),
            lambda: (
                all_speak()
                and have("codes", with_pitch(), ".npz")
                and have("pitch", with_pitch(), ".npz")
            ),
        ),
        Job(
            "language_model",
            learn,
            lambda: len(spoken()) >= ENOUGH_SHARDS and have("speech", held_out, ".jsonl"),
            threads=os.cpu_count() or 1,
        ),
        Job(
            "predictions",
            python("predict.py", "--shards", PITCH_SHARDS),
            has_learned,
        ),
        Job(
            "adapted_decoder",
            python("train_decoder.py", "--steps", decoder_steps + ADAPTING_STEPS),
            # Both write the same files: not beside the decoder's first training.
            lambda: has_filtered() and has_learned() and have("predicted", spoken_with(), ".npz"),
        ),
    ]


def main() -> None:
    """Run until everything is made."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=Path("build/default_model"))
    parser.add_argument("--hours", type=float, default=40.0, help="of speech to learn from")
    parser.add_argument("--codec-steps", type=int, default=8000)
    parser.add_argument("--decoder-steps", type=int, default=4000)
    parser.add_argument("--language-model-steps", type=int, default=60000)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"the default model is being made in {folder} already")
        give_way()
        write_texts(folder / "texts")
        write_lexicon(folder)
        steps = (options.codec_steps, options.decoder_steps, options.language_model_steps)
        jobs = Jobs(jobs_of(folder, options.hours, *steps), folder)
        signal.signal(signal.SIGTERM, _leave)
        try:
            while jobs.look(time.monotonic()):
                time.sleep(_PAUSE)
        finally:
            jobs.stop()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
