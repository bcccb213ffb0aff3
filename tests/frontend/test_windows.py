# SPDX-License-Identifier: Apache-2.0
"""Which requests make audio that is longer than a window."""

from hypothesis import given
from hypothesis import strategies as st

from vllm.unison.frontend.windows import Window, plan_windows, window_seed


def test_the_published_numbers() -> None:
    """60 s by windows of 30 s, each 18 s further: 12 s of one are the prompt of the next."""
    assert plan_windows(0, 3000, 1500, 900) == [
        Window(0, 0, 1500), Window(900, 600, 900), Window(1800, 600, 600),
    ]  # fmt: skip
    assert plan_windows(250, 1250, 1500, 900) == [Window(0, 250, 1250)]
    # A clip that fills a window: what a window has of the one before is all that fits.
    assert plan_windows(2000, 100, 1500, 900) == [Window(1400, 600, 100)]


@given(st.integers(0, 80), st.integers(1, 200), st.integers(2, 30), st.data())
def test_windows_make_every_frame_once(
    num_given: int, num_new: int, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length - 1))
    known = num_given
    windows = plan_windows(num_given, num_new, length, stride)
    for index, window in enumerate(windows):
        assert window.start >= 0 and window.num_new >= 1
        # It goes on where the one before ended, and has a prompt of what is known.
        assert window.start + window.num_prompt == known
        assert window.num_prompt + window.num_new <= length
        if index:
            assert window.start == windows[index - 1].start + stride
            assert window.num_prompt == length - stride
        known += window.num_new
    assert known == num_given + num_new


def test_windows_have_different_seeds() -> None:
    assert window_seed(5, 0) == 5
    seeds = {window_seed(seed, index) for seed in (-1, 0, 1, 2**63 - 2) for index in range(9)}
    assert len(seeds) == 36
    assert all(-(2**63) <= seed < 2**63 - 1 for seed in seeds)
