# SPDX-License-Identifier: Apache-2.0
"""torch.compile (enforce_eager=False): the backbone is compiled, tokens stay the reference's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.streams.cases import Case, assert_equals, comparable
from tests.engine.streams.conftest import open_engine
from tests.engine.streams.reference import Reference
from vllm.config import CompilationMode
from vllm.unison.testing.random_checkpoint import BEGIN_TEXT, FIRST_TEXT

NAME = "switching"
CASES = [
    Case(text="greedy", options={"max_tokens": 12}),
    Case(text="seeded", options={"temperature": 1.0, "seed": 1, "max_tokens": 14}),
    Case(
        token_ids=(BEGIN_TEXT, *range(FIRST_TEXT + 60, FIRST_TEXT + 70)),
        options={"temperature": 1.0, "seed": 7, "top_k": 50, "max_tokens": 10},
    ),
]


@pytest.mark.slow
def test_compiled_tokens_equal_the_references(
    checkpoint: Callable[[str], Path], reference: Callable[[str], Reference]
) -> None:
    with open_engine(checkpoint(NAME), enforce_eager=False) as llm:
        mode = llm.llm_engine.vllm_config.compilation_config.mode
        assert mode != CompilationMode.NONE
        prompts, params = [c.prompt for c in CASES], [c.params for c in CASES]
        together = llm.generate(prompts, params, use_tqdm=False)
        alone = [llm.generate(c.prompt, c.params, use_tqdm=False)[0] for c in CASES]
    for case, output, single in zip(CASES, together, alone, strict=True):
        assert_equals(output, case.expected(reference(NAME)), str(case))
        assert comparable(output) == comparable(single)
