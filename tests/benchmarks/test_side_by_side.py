# SPDX-License-Identifier: Apache-2.0
"""The parts of benchmark_side_by_side.py that need no engine."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.benchmark_side_by_side import (
    LENGTH,
    REQUESTS,
    Case,
    Measurement,
    parse_arguments,
    parts_of,
    summarize,
)
from benchmarks.naive_guidance import CONDITIONAL, PairedGuidance, pair_params, tokens_apart
from benchmarks.variant_process import VariantProcess
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

VOCABULARY = 11


@dataclass
class Batch:
    """Rows of a batch, and what a processor is told of their changes; rows stay without gaps."""

    processor: PairedGuidance
    rows: list[SamplingParams] = field(default_factory=list)

    def change(
        self, added: list[SamplingParams], removed: list[int], swap: tuple[int, int]
    ) -> None:
        """Remove rows, put new requests into the gaps or at the end, close gaps, swap two rows."""
        gaps = sorted(removed)
        additions: list[Any] = []
        for params in added:
            row = gaps.pop(0) if gaps else len(self.rows)
            self.rows[row : row + 1] = [params]
            additions.append((row, params, [1], []))
        moves: list[Any] = []
        while gaps:
            last, gap = len(self.rows) - 1, gaps[0]
            if last in gaps:
                gaps.remove(last)
            else:
                gaps.pop(0)
                self.rows[gap] = self.rows[last]
                moves.append((last, gap, MoveDirectionality.UNIDIRECTIONAL))
            self.rows.pop()
        if max(swap) < len(self.rows):
            first, second = swap
            self.rows[first], self.rows[second] = self.rows[second], self.rows[first]
            moves.append((first, second, MoveDirectionality.SWAP))
        replaced = {row for row, *_ in additions}
        still_removed = sorted(set(removed) - replaced, reverse=True)
        self.processor.update_state(
            BatchUpdate(len(self.rows), removed=still_removed, added=additions, moved=moves)
        )


def merged_by_hand(rows: list[SamplingParams], logits: torch.Tensor) -> torch.Tensor:
    """[num_rows, VOCABULARY] logits, pair by pair."""
    expected = logits.clone()
    for first, params in enumerate(rows):
        given = params.extra_args or {}
        for second, other in enumerate(rows):
            pair = (other.extra_args or {}).get("guidance_pair")
            if first == second or "guidance_pair" not in given or pair != given["guidance_pair"]:
                continue
            if given["guidance_lane"] == CONDITIONAL:
                scale = given["guidance_scale"]
                expected[first] = scale * logits[first] + (1 - scale) * logits[second]
                expected[second] = expected[first]
    return expected


@pytest.mark.parametrize("seed", range(20))
def test_pairs_are_merged_wherever_their_rows_go(seed: int) -> None:
    generator = random.Random(seed)
    batch = Batch(PairedGuidance(None, torch.device("cpu"), False))
    was_merged = False
    waiting: list[SamplingParams] = []
    for step in range(12):
        waiting += pair_params(step, generator.choice([0.0, 1.0, 1.5, 3.0]))
        if generator.random() < 0.5:
            waiting.append(SamplingParams())
        count = generator.randrange(len(waiting) + 1)
        added, waiting = waiting[:count], waiting[count:]
        rows = range(len(batch.rows))
        removed = generator.sample(rows, generator.randrange(len(rows) // 2 + 1))
        batch.change(added, removed, (generator.randrange(4), generator.randrange(4)))
        logits = torch.randn(len(batch.rows), VOCABULARY)
        expected = merged_by_hand(batch.rows, logits)
        was_merged |= not torch.equal(expected, logits)
        torch.testing.assert_close(batch.processor.apply(logits.clone()), expected)
    assert was_merged


@pytest.mark.parametrize(
    "extra", [{"guidance_pair": 1}, {"guidance_pair": 1, "guidance_lane": "null"}]
)
def test_half_a_pair_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"guidance_(lane|scale) must be"):
        PairedGuidance.validate_params(SamplingParams(extra_args=extra))


def test_tokens_apart() -> None:
    assert not tokens_apart([1, 2], (1, 2))
    assert tokens_apart([1, 2], [1, 3])
    assert tokens_apart([1, 2], [1])


def test_table_holds_medians_ratios_and_pairs() -> None:
    results = {
        Case(4, True): {
            "fork": [Measurement(speed, 0) for speed in (10.0, 30.0, 20.0)],
            "upstream": [Measurement(10.0, apart) for apart in (1, 0, 2)],
        },
        Case(4, False): {"fork": [Measurement(5.0, 0)], "upstream": [Measurement(10.0, 0)]},
    }
    guided, plain = summarize("upstream", results)
    assert guided["fork_tokens_per_second"] == 20.0
    assert guided["fork_over_upstream"] == {"ratio": 2.0, "range": [1.0, 3.0]}
    assert (guided["pairs"], guided["pairs_apart"]) == (12, 3)
    assert guided["rounds"]["fork"] == [10.0, 30.0, 20.0]
    assert plain["fork_over_upstream"]["ratio"] == 0.5
    assert "pairs_apart" not in plain


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse_arguments([])
    assert (options.sizes, options.length) == ([(256, 6), (1024, 16)], LENGTH)
    assert options.requests == list(REQUESTS)
    assert parts_of(options) == ["transformers"]
    options = parse_arguments(
        ["--quick", "--upstream-python", "python", "--sizes", "128x3", "--length", "5"]
    )
    assert (options.sizes, options.length, options.rounds) == ([(128, 3)], 5, 2)
    assert parts_of(options) == ["transformers", "upstream"]
    for wrong in (["--sizes", "100x3"], ["--sizes", "64"], ["--requests", "0"]):
        with pytest.raises(SystemExit):
            parse_arguments(wrong)
        assert "must be" in capsys.readouterr().err


def test_side_process_answers_and_says_why_it_failed(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    script = tmp_path / "variant.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from variant_process import serve\n"
        "class Variant:\n"
        "    def add(self, a, b):\n"
        "        print('noise'); return a + b\n"
        "    def fail(self):\n"
        "        raise ValueError('a reason')\n"
        "serve(Variant)\n"
    )
    variant = VariantProcess(sys.executable, script, [])
    try:
        variant.wait_until_ready()
        assert variant.call("add", 2, 3) == 5
        assert variant.call("add", 2.5, 3) == 5.5
        with pytest.raises(RuntimeError, match="a reason"):
            variant.call("fail")
    finally:
        variant.end()
