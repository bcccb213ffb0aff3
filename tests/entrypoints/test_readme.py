# SPDX-License-Identifier: Apache-2.0
"""The README's server and client, but for the port."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.entrypoints.server import Server
from tests.examples.snippets import ALL, ROOT, plain_environment
from tests.support.demonstration import SENTENCE


def run(command: list[str], folder: Path) -> str:
    result = subprocess.run(
        command, cwd=folder, env=plain_environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_the_readme_s_server_and_client(packaged: Server, tmp_path: Path) -> None:
    """What follows `vllm serve`, which has started this server."""
    found = [s for s in ALL if s.page == "README.md" and s.test == "server"]
    url = packaged.url.replace("127.0.0.1", "localhost")
    shell, client = (s.text.replace("http://localhost:8000", url) for s in found)
    _, curl = shell.split("\n", 1)
    assert curl.startswith("curl ")
    run(["bash", "-euc", curl], tmp_path)
    assert soundfile.info(tmp_path / "road.wav").frames >= 20 * 320
    (tmp_path / "road.wav").unlink()
    (tmp_path / "client.py").write_text(client, encoding="utf-8")
    assert run([sys.executable, "client.py"], tmp_path) == f"{SENTENCE}\n"
    shown = run([sys.executable, str(ROOT / "examples/openai_client.py"), url], tmp_path)
    assert len(shown.splitlines()) >= 2
    assert shown.splitlines()[-1] == f"heard: {SENTENCE}"
