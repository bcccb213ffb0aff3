# SPDX-License-Identifier: Apache-2.0
"""The cache of encoder states: what leaves, and what is counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm.unison.conditioning.state_cache import StateCache


def state(num_bytes: int) -> torch.Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8)


def test_what_was_used_last_stays() -> None:
    cache = StateCache(10)
    cache.put(b"a", state(4))
    cache.put(b"b", state(4))
    assert cache.get(b"a") is not None
    cache.put(b"c", state(6))
    assert b"a" in cache and b"c" in cache and b"b" not in cache
    assert cache.num_bytes == 10
    assert cache.get(b"b") is None


def test_what_is_too_large_is_not_kept_and_drives_nothing_out() -> None:
    cache = StateCache(10)
    cache.put(b"a", state(10))
    cache.put(b"b", state(11))
    assert b"a" in cache and b"b" not in cache
    # Not what it was before either.
    cache.put(b"a", state(11))
    assert len(cache) == cache.num_bytes == 0


def test_a_part_counts_as_the_whole_that_it_keeps_alive() -> None:
    cache = StateCache(100)
    cache.put(b"a", state(60)[:2])
    assert cache.num_bytes == 60


def test_a_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^capacity must be at least 0 bytes, not -1$"):
        StateCache(-1)


@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.booleans(), st.sampled_from("abcde"), st.integers(0, 8))),
)
def test_it_is_a_list_in_order_of_use(capacity: int, calls: list[tuple[bool, str, int]]) -> None:
    cache = StateCache(capacity)
    kept: list[tuple[bytes, torch.Tensor]] = []
    for is_put, name, size in calls:
        key = name.encode()
        own = [pair for pair in kept if pair[0] == key]
        rest = [pair for pair in kept if pair[0] != key]
        if is_put:
            tensor = state(size)
            cache.put(key, tensor)
            kept = rest
            if size <= capacity:
                kept = [*rest, (key, tensor)]
                while sum(len(t) for _, t in kept) > capacity:
                    kept.pop(0)
        else:
            assert cache.get(key) is (own[0][1] if own else None)
            kept = [*rest, *own]
        assert len(cache) == len(kept)
        assert all(k in cache for k, _ in kept)
        assert cache.num_bytes == sum(len(t) for _, t in kept) <= capacity
