"""Which windows make up which batch: a pure function of seed and position, so that a run can resume.

The stream of windows is endless. It is cut into epochs of N draws from N windows; with equal weights an
epoch is a permutation, with others a window with c times the mean weight is drawn floor(c) or ceil(c) times
(systematic sampling), c times on average. No state is kept: to resume is to ask for a later position.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class WindowStream:
    """An endless, reproducible, shuffled stream of window numbers.

    Args:
        weights: (N,) how often each window is to be drawn, relative to the others.
        seed: chooses the order.
    """

    def __init__(self, weights: np.ndarray, seed: int) -> None:
        self._cumulative = np.cumsum(weights, dtype=np.float64)
        self._seed = seed
        self._epochs: dict[int, np.ndarray] = {}

    def epoch_length(self) -> int:
        """N."""
        return len(self._cumulative)

    def take(self, position: int, count: int) -> np.ndarray:
        """Window numbers at `position` to `position + count - 1` of the stream, (count,) int64."""
        places = np.arange(position, position + count)
        epochs = places // self.epoch_length()
        return np.concatenate(
            [self._epoch(e)[places[epochs == e] - e * self.epoch_length()] for e in np.unique(epochs).tolist()]
        )

    def _epoch(self, epoch: int) -> np.ndarray:
        """The order of one epoch; the two latest are kept, as batches may straddle them."""
        if epoch not in self._epochs:
            random = np.random.default_rng([self._seed, epoch])
            N = self.epoch_length()
            ticks = (np.arange(N) + random.random()) * (self._cumulative[-1] / N)
            order = np.minimum(np.searchsorted(self._cumulative, ticks, side="right"), N - 1)
            random.shuffle(order)
            self._epochs = {e: kept for e, kept in self._epochs.items() if abs(e - epoch) == 1} | {epoch: order}
        return self._epochs[epoch]


class BatchNumbers:
    """Yields the window numbers of one process's batches for ever: a torch batch sampler.

    All processes together take a piece of the stream for every batch, and each takes its share: W processes
    with batches of B train on the windows that one process with batches of W * B would.

    Args:
        stream: where numbers come from.
        batch_size: windows in a batch of this process.
        start: batches to skip, as many as an earlier run has trained on.
        rank: this process's number. processes: how many there are.
        places: whether numbers say their place in the stream, too, as `place * N + number` (see `Windows`).
    """

    def __init__(
        self,
        stream: WindowStream,
        batch_size: int,
        *,
        start: int = 0,
        rank: int = 0,
        processes: int = 1,
        places: bool = False,
    ) -> None:
        self._stream, self._batch_size, self._start = stream, batch_size, start
        self._rank, self._processes, self._places = rank, processes, places

    def __iter__(self) -> Iterator[list[int]]:
        batch = self._start
        while True:
            position = (batch * self._processes + self._rank) * self._batch_size
            numbers = self._stream.take(position, self._batch_size)
            if self._places:
                numbers += np.arange(position, position + self._batch_size) * self._stream.epoch_length()
            yield numbers.tolist()
            batch += 1


def held_out_numbers(windows: int, count: int, *, rank: int = 0, processes: int = 1) -> np.ndarray:
    """This process's share of at most `count` window numbers, spread evenly over all `windows`."""
    numbers = np.linspace(0, windows - 1, min(count, windows)).round().astype(np.int64)
    return numbers[rank::processes]
