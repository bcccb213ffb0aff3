# SPDX-License-Identifier: Apache-2.0
"""The examples are short, say how they are run, and are listed; `engine` runs them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_page_that_says_its_command(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert 20 <= text.count("\n") <= 40
    said = ast.get_docstring(ast.parse(text))
    assert said is not None and f"python examples/{path.name}" in said


def test_the_index_lists_every_example() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[(\w+\.py)\]", index, re.MULTILINE)) == [
        path.name for path in EXAMPLES
    ]
