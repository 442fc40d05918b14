"""The order of windows: seeded, balanced, and the same however it is cut, shared or taken up again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from roboflamingo.data.sampling import BatchNumbers, WindowStream, held_out_numbers


@given(st.integers(1, 200), st.integers(0, 5), st.integers(0, 2**31))
def test_with_equal_weights_an_epoch_draws_every_window_once(windows: int, epoch: int, seed: int) -> None:
    numbers = WindowStream(np.ones(windows), seed).take(epoch * windows, windows)
    assert sorted(numbers) == list(range(windows))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=50), st.integers(0, 100))
def test_with_weights_an_epoch_draws_each_window_as_often_as_its_share(weights: list[float], seed: int) -> None:
    counts = np.bincount(WindowStream(np.array(weights), seed).take(0, len(weights)), minlength=len(weights))
    expected = np.array(weights) / np.sum(weights) * len(weights)
    assert (np.abs(counts - expected) < 1 + 1e-6).all()


@given(st.integers(1, 30), st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_the_stream_does_not_depend_on_how_it_is_cut(windows: int, cuts: list[int]) -> None:
    whole = WindowStream(np.ones(windows), 3).take(0, sum(cuts))
    starts = np.cumsum([0, *cuts[:-1]])
    pieces = [WindowStream(np.ones(windows), 3).take(int(at), cut) for at, cut in zip(starts, cuts, strict=True)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


def take_batches(numbers: BatchNumbers, count: int) -> list[list[int]]:
    return [batch for batch, _ in zip(numbers, range(count), strict=False)]


def test_a_later_start_gives_the_batches_that_would_have_come() -> None:
    stream = WindowStream(np.ones(17), 5)
    assert take_batches(BatchNumbers(stream, 4), 12)[7:] == take_batches(BatchNumbers(stream, 4, start=7), 5)


def test_two_processes_share_the_batches_of_one_with_the_doubled_size() -> None:
    stream = WindowStream(np.ones(50), 5)
    alone = take_batches(BatchNumbers(stream, 8), 9)
    first, second = (take_batches(BatchNumbers(stream, 4, rank=rank, processes=2), 9) for rank in (0, 1))
    assert alone == [a + b for a, b in zip(first, second, strict=True)]


def test_seeds_differ_and_epochs_differ() -> None:
    order = WindowStream(np.ones(100), 0).take(0, 200)
    assert (order[:100] != order[100:]).any()
    assert (order[:100] != WindowStream(np.ones(100), 1).take(0, 100)).any()


def test_held_out_windows_are_spread_and_shared() -> None:
    assert held_out_numbers(100, 5).tolist() == [0, 25, 50, 74, 99]
    shares = [held_out_numbers(100, 5, rank=rank, processes=2).tolist() for rank in (0, 1)]
    assert shares == [[0, 50, 99], [25, 74]]
    assert held_out_numbers(3, 512).tolist() == [0, 1, 2]
