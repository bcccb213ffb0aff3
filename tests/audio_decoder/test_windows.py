# SPDX-License-Identifier: Apache-2.0
"""Window arithmetic against a decoder that knows which frames it has been given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm.unison.audio_decoder.windows import (
    first_input_kept,
    frames_needed,
    plan_window,
    stage_targets,
)
from vllm.unison.codecs.receptive_field import Context

contexts = st.builds(Context, st.integers(0, 6), st.integers(0, 6), st.integers(0, 9))
chains = st.lists(contexts, min_size=1, max_size=4)


def emittable(chain: list[Context], num_known: int) -> int:
    """Outputs of a chain while more frames may follow, counted stage by stage."""
    for context in chain:
        num_known = max(num_known - context.right, 0) if num_known >= context.first else 0
    return num_known


@given(chain=chains, num_outputs=st.integers(0, 40))
def test_frames_needed_is_the_least_that_is_enough(chain: list[Context], num_outputs: int) -> None:
    needed = frames_needed(chain, num_outputs)
    assert emittable(chain, needed) >= num_outputs
    assert needed == 0 or emittable(chain, needed - 1) < num_outputs


@given(chain=chains, sizes=st.lists(st.integers(1, 9), max_size=8), rest=st.integers(0, 5))
def test_every_output_is_given_once_with_its_whole_context(
    chain: list[Context], sizes: list[int], rest: int
) -> None:
    """Chunks as frames arrive, then the rest at the end."""
    stops, total = [], 0
    for size in sizes:
        total += size
        stops.append((total, frames_needed(chain, total), False))
    length = max([known for _, known, _ in stops], default=0) + rest
    if length > total:
        stops.append((length, length, True))
    done, kept = [0] * len(chain), [0] * len(chain)
    for stop, known, ended in stops:
        targets = stage_targets(chain, stop, known)
        available = known
        for number, (context, target) in enumerate(zip(chain, targets, strict=True)):
            if target <= done[number]:
                available = done[number]
                continue
            window = plan_window(context, done[number], target, available)
            # What it is given was there, and had not been dropped.
            assert kept[number] <= window.begin <= window.end <= available
            assert window.begin + window.skip == done[number]
            assert window.count == target - done[number]
            # Whole context, or the true ends of the audio.
            assert window.begin == max(done[number] - context.left, 0)
            wanted = max(target + context.right, context.first if window.begin == 0 else 0)
            assert window.end == wanted or (ended and window.end == length < wanted)
            done[number] = target
            kept[number] = first_input_kept(context, target)
            available = target
        assert done[-1] == stop
    assert done[-1] == (length if length > total else total)


def test_examples() -> None:
    context = Context(10, 10)
    assert frames_needed([context], 4) == 14
    assert frames_needed([Context(6, 0, 7), Context(0, 0), Context(2, 0)], 1) == 7
    first = plan_window(context, 0, 4, 14)
    assert (first.begin, first.end, first.skip, first.count) == (0, 14, 0, 4)
    later = plan_window(context, 20, 28, 60)
    assert (later.begin, later.end, later.skip, later.count) == (10, 38, 10, 8)
    last = plan_window(context, 20, 24, 24)
    assert (last.begin, last.end, last.skip, last.count) == (10, 24, 10, 4)
