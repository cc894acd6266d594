"""How long people wait for the command before it does anything: `selftrain --help` beside a Python that does nothing.

python benchmarks/bench_command.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    ways = {"selftrain --help": ["-m", "flows.cli", "--help"], "nothing": ["-c", ""]}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):  # in turns, so that a busy machine slows both
        for name, arguments in ways.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    for name, values in times.items():
        print(f"{name:18} {1000 * statistics.median(values):6.0f} ms")


if __name__ == "__main__":
    main()
