"""What a Prefect server costs a run: a finished run typed again, whose stages are reused, with the server and without.

PREFECT_API_URL=http://127.0.0.1:4200/api python benchmarks/bench_watched.py CONFIG RUN_DIR [--repeats 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time


def main() -> None:
    """Time both in turns, so that a busy machine slows both, and print medians and the differences of pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config of a run that is finished")
    parser.add_argument("run_dir", help="its folder")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of runs")
    args = parser.parse_args()
    if "PREFECT_API_URL" not in os.environ:
        parser.error("PREFECT_API_URL is not set; start `prefect server start`, and set it to the server's address")
    command = [sys.executable, "-m", "flows.cli", "run", args.config, "--run-dir", args.run_dir]
    ways = {"without a server": ["--no-prefect"], "with a server": []}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, more in ways.items():
            began = time.perf_counter()
            subprocess.run([*command, *more], check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    for name, values in times.items():
        print(f"{name:18} {statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})")
    more = [watched - alone for alone, watched in zip(*times.values(), strict=True)]
    print(f"{'difference':18} {statistics.median(more):6.2f} s ({min(more):.2f} to {max(more):.2f})")


if __name__ == "__main__":
    main()
