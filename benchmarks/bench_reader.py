"""The reader and the order of a stream: images gathered per second from the cache, and the time of a seek.

    python benchmarks/bench_reader.py [--size 32] [--batch 512] [--repeats 50]

A gather is what every step waits for, unless it is fast. A seek is what a resume costs, however far ahead it goes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.config import Data
from pipeline.packing.pack import pack
from pipeline.shards.dataset import open_split
from pipeline.shards.order import Order
from pipeline.shards.reader import Reader

NUM_IMAGES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as name:
        folder = Path(name)
        (folder / "images" / "noise").mkdir(parents=True)
        for number in range(NUM_IMAGES):
            pixels = draws.integers(0, 256, (args.size, args.size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / "noise" / f"{number:04d}.png", compress_level=1)
        pack(folder / "images", folder / "packed", split="unlabeled", shard_size=500)
        data = Data(root=folder / "packed", cache_dir=folder / "cache", cache="always")
        reader = Reader(open_split(data, "unlabeled"), args.size, data)
        rows = draws.integers(0, NUM_IMAGES, args.batch)
        gather = median_s(lambda: reader.read(rows), args.repeats)
    order = Order(np.arange(0, 10_000_001, 1000), None, seed=0, stream="unlabeled", round=0, window_shards=64)
    places = iter(range(10**9, 10**15, 10**12))
    seek = median_s(lambda: order.rows(place := next(places), place + args.batch), min(args.repeats, 100))
    print(f"gather of {args.batch} images of {args.size} x {args.size}: {args.batch / gather:,.0f} images/s")
    print(f"seek in a stream of 10 million rows: {1000 * seek:.1f} ms")


def median_s(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
