"""Ways to spend 20 minutes on CIFAR-10 with 4,000 labels.

    python benchmarks/compare_methods.py RUNS [--data shards/cifar10_4k] [--only NAME ...] [--set key.path=value]

Runs every method one after another as `selftrain run` would, each in its folder under RUNS, and prints a table. Lengths
are steps, set once so that each run takes 20 minutes on the machine of docs/results.md: two idle cores with bf16 matrix
units. What is finished is not run again and what was interrupted goes on: type the same command. Every choice inside a
run is made on val; test is read once at its end.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

from pipeline.evaluate.metrics import paired_difference

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Method:
    """One line of the comparison."""

    title: str
    config: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)


METHODS = {
    "supervised": Method("supervised", "cifar10_4k.yaml", ("rounds.num_rounds=0", "teacher.steps=11500")),
    "uda": Method(
        "UDA",
        "cifar10_4k_meta.yaml",
        ("method=uda", "student.steps=4900", "student.warmup_steps=150", "uda.ramp_steps=2400"),
        seeds=(0, 1),
    ),
    "off": Method(
        "distillation only (h = 0)", "cifar10_4k_meta.yaml", ("meta.feedback=off", "student.steps=2900"), seeds=(0, 1)
    ),
    "off_equal_steps": Method(
        "h = 0, the steps of exact", "cifar10_4k_meta.yaml", ("meta.feedback=off",), seeds=(0, 1)
    ),
    "exact": Method("Meta Pseudo Labels, exact", "cifar10_4k_meta.yaml", (), seeds=(0, 1)),
    "cosine": Method("Meta Pseudo Labels, cosine", "cifar10_4k_meta.yaml", ("meta.feedback=cosine",)),
    "noisy_student": Method(
        "Noisy Student",
        "cifar10_4k.yaml",
        (
            "teacher.steps=2000",
            "rounds.num_rounds=2",
            "rounds.overrides=[{student.steps: 1800}, {student.steps: 3200}]",
        ),
    ),
}

LEADS = (
    ("Feedback at equal time", "exact", "off"),
    ("Feedback at equal steps", "exact", "off_equal_steps"),
    ("Noisy Student over UDA", "noisy_student", "uda"),
    ("Noisy Student over supervised", "noisy_student", "supervised"),
    ("UDA over supervised", "uda", "supervised"),
)
"""What is compared image by image: title, and two of METHODS."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data", type=Path, default=Path("shards/cifar10_4k"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY.PATH=VALUE")
    parser.add_argument("--only", nargs="+", choices=METHODS, metavar="NAME", help=f"of {', '.join(METHODS)}")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = ((seed, name) for name in args.only or METHODS for seed in METHODS[name].seeds)
    for seed, name in sorted(wanted, key=itemgetter(0)):
        folder = args.runs / f"{name}-{seed}"
        if is_finished(folder):  # also one of another version of this package, or of other overrides
            print(f"{folder} is finished and not repeated")
        else:
            overrides = [f"data.root={args.data}", f"seed={seed}", "evaluate.control=false", *args.overrides]
            go_on(folder, METHODS[name], overrides)
        print_table(args.runs)


def go_on(folder: Path, method: Method, overrides: list[str]) -> None:
    command = [sys.executable, "-m", "flows.cli", "run", str(CONFIGS / method.config), "--no-prefect"]
    command += ["--run-dir", str(folder)]
    for override in (*method.overrides, *overrides):
        command += ["--set", override]
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # saves, and ends
            code = process.wait()
    if code:
        sys.exit(code)


def is_finished(folder: Path) -> bool:
    path = folder / "result.json"
    return path.exists() and json.loads(path.read_text())["final"]["test_top1"] is not None


def minutes(folder: Path) -> float:
    """Of training, labeling and evaluation, each at the median pace of its stage, so that interruptions do not count;
    without start-up and the looks at val in between."""
    seconds = 0.0
    for path in folder.rglob("timing.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if (path.parent / "metrics.jsonl").exists():  # of steps, of which a kill repeats some
            lines = list({line["step"]: line for line in lines}.values())
        pace = statistics.median(line["seconds"] / line["images"] for line in lines)
        seconds += pace * sum(line["images"] for line in lines)
    return seconds / 60


def right(folder: Path) -> np.ndarray:
    """bool [N]: which test images the final model is right on."""
    (path,) = folder.glob("evaluate-*/predictions-final.npz")
    with np.load(path) as arrays:
        return np.asarray(arrays["pred"] == arrays["label"])


def print_table(runs: Path) -> None:
    print("\n| method | seed | minutes | val of each model | test of the best on val | 95% interval |")
    print("|---|---|---|---|---|---|")
    for name, method in METHODS.items():
        for folder in (runs / f"{name}-{seed}" for seed in method.seeds):
            if not is_finished(folder):
                continue
            result = json.loads((folder / "result.json").read_text())
            final = result["final"]
            low, high = final["test"]["final"]["interval"]
            vals = ", ".join(f"{entry['role']} {100 * entry['val_top1']:.1f}" for entry in result["rounds"])
            seed, test = folder.name.rpartition("-")[2], f"{100 * final['test_top1']:.2f}"
            cells = (method.title, seed, f"{minutes(folder):.1f}", vals, test, f"{100 * low:.1f} to {100 * high:.1f}")
            print("|", " | ".join(cells), "|")
    for title, ours, theirs in LEADS:
        pairs = []
        for seed in METHODS[ours].seeds:
            folders = runs / f"{ours}-{seed}", runs / f"{theirs}-{seed}"
            if all(map(is_finished, folders)):
                pairs.append((right(folders[0]), right(folders[1])))
                print_lead(f"{title}, seed {seed}", *paired_difference(*pairs[-1]))
        if len(pairs) > 1:
            differences = np.mean([a.astype(float) - b for a, b in pairs], axis=0)
            mean, spread = differences.mean(), 1.96 * differences.std() / math.sqrt(len(differences))
            print_lead(f"{title}, mean of {len(pairs)} seeds", mean, mean - spread, mean + spread)


def print_lead(title: str, points: float, low: float, high: float) -> None:
    interval = f"paired 95% interval {100 * low:+.2f} to {100 * high:+.2f}"
    print(f"{title}: {100 * points:+.2f} points ({interval})")


if __name__ == "__main__":
    main()
