"""The order of a training stream as a function of position.

The stream is the endless concatenation of per-epoch permutations of (row, copy). In each epoch the shards are
permuted, then the samples within windows of some shards, so that a reader touches few shards at a time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.arrays import I64Array
from pipeline.errors import UserError
from pipeline.randomness import key_of, permutation


class Order:
    """An endless stream of rows in which every (row, copy) occurs exactly once per epoch.

    Args:
        starts: First row of each shard and, last, the number of rows; [S+1].
        copies: How often each row occurs in an epoch, [N]; None for once.
        seed: The run's seed.
        stream: Name of the stream, such as "labeled"; streams are independent of each other.
        round: Round of the loop.
        window_shards: Shards that are mixed with each other.

    A seek costs one window (or nothing within the last one), however far ahead.
    """

    def __init__(
        self,
        starts: npt.NDArray[np.integer],
        copies: npt.NDArray[np.integer] | None = None,
        *,
        seed: int,
        stream: str,
        round: int,
        window_shards: int = 64,
    ) -> None:
        self._starts = np.asarray(starts, np.int64)
        self._copies = copies
        self._coordinates = (seed, stream, round)
        self._window_shards = window_shards
        if copies is None:
            self._shard_sizes = np.diff(self._starts)
        else:
            if len(copies) != self._starts[-1]:
                raise ValueError(f"{len(copies)} copies for {self._starts[-1]} rows")
            pairs = zip(self._starts[:-1], self._starts[1:], strict=True)
            self._shard_sizes = np.array([copies[begin:end].sum(dtype=np.int64) for begin, end in pairs], np.int64)
        self.epoch_size = int(self._shard_sizes.sum())
        """Positions per epoch."""
        if self.epoch_size == 0:
            raise UserError(f"stream `{stream}` of round {round} has no samples to draw from")
        self._plan: tuple[int, I64Array, I64Array] | None = None
        self._window: tuple[int, int, I64Array] | None = None

    def rows(self, start: int, stop: int) -> I64Array:
        """Rows at the stream positions [start, stop), which may straddle windows and epochs."""
        if not 0 <= start <= stop:
            raise ValueError(f"positions [{start}, {stop})")
        parts = [np.empty(0, np.int64)]
        while start < stop:
            epoch, within = divmod(start, self.epoch_size)
            _, ends = self._epoch_plan(epoch)
            window = int(np.searchsorted(ends, within, side="right"))
            begin = int(ends[window - 1]) if window else 0
            part = self._window_rows(epoch, window)[within - begin : within - begin + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def _epoch_plan(self, epoch: int) -> tuple[I64Array, I64Array]:
        """The epoch's order of shards [S], and where each window ends in the epoch [W]."""
        plan = self._plan  # a copy: a reading thread and an error message may ask at the same time
        if plan is None or plan[0] != epoch:
            shards = permutation(self._key(epoch, "shards"), len(self._shard_sizes))
            ends = np.cumsum(self._shard_sizes[shards])
            last = np.arange(self._window_shards, len(ends) + self._window_shards, self._window_shards) - 1
            self._plan = plan = (epoch, shards, ends[np.minimum(last, len(ends) - 1)])
        return plan[1], plan[2]

    def _window_rows(self, epoch: int, window: int) -> I64Array:
        found = self._window
        if found is None or found[:2] != (epoch, window):
            shards = self._epoch_plan(epoch)[0][window * self._window_shards : (window + 1) * self._window_shards]
            rows = np.concatenate([self._shard_rows(int(shard)) for shard in shards])
            self._window = found = (epoch, window, rows[permutation(self._key(epoch, "window", window), len(rows))])
        return found[2]

    def _shard_rows(self, shard: int) -> I64Array:
        begin, end = self._starts[shard], self._starts[shard + 1]
        rows = np.arange(begin, end)
        return rows if self._copies is None else np.repeat(rows, self._copies[begin:end])

    def _key(self, *coordinates: int | str) -> int:
        seed, stream, round = self._coordinates
        return key_of(seed, "order", stream, round, *coordinates)
