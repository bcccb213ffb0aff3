# SPDX-License-Identifier: Apache-2.0
"""One variant of a benchmark in a process of its own, driven by a pipe.

Each line to the process is a JSON list: a method's name and its arguments. Each line back is the
JSON of what the method returned. So a variant stays open, warm and idle while another runs.
Imports nothing but the standard library, so that any Python can run it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def serve(make: Callable[[], Any]) -> None:
    """Make an object, then answer calls of its methods until the input ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    variant = make()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(variant, name)(*arguments)), file=answers, flush=True)


class VariantProcess:
    """A process in which a script calls `serve`.

    Args:
        python: the Python to run.
        script: the script.
        arguments: of the script.
        environment: variables of the process; default this one's.
    """

    def __init__(
        self,
        python: str,
        script: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, str(script.resolve()), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=dict(environment),
            # A neutral folder keeps the process from importing this repository's packages.
            cwd=tempfile.gettempdir(),
        )

    def wait_until_ready(self) -> None:
        """Wait until the process serves; RuntimeError with its messages if it does not."""
        self._read()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method; RuntimeError with the process's messages if that fails."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()
        self._errors.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"a variant failed:\n{self._errors.read()[-4000:]}")
        return line
