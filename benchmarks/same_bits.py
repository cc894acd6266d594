"""Run digits at two commits on this machine and compare every byte that they leave: proof that a change moved no bit.

    python benchmarks/same_bits.py f8bc5ff HEAD --work /tmp/same_bits

Cases: Noisy Student (with accumulation, fine-tune and control), UDA, Meta Pseudo Labels, Reduced Meta Pseudo Labels.
Each commit runs from a clone of its own in the work folder, so edits that are not committed do not take part. A run
that is finished there is reused, so the second comparison with a commit costs half. About 2.5 minutes per commit on 2
cores.

Compared byte by byte: weights, metrics, predictions, labels, selections, figures. Told by what they hold instead of by
bytes: checkpoints (fingerprints and the names of networks aside), Arrow files (columns), model.json (lineage aside).
Not compared, because they hold times, fingerprints or the config's own words: stage.json, job.json, output.log,
timing.jsonl, progress.json, plots.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

ROOT = Path(__file__).resolve().parent.parent
NOT_COMPARED = {"stage.json", "job.json", "output.log", "timing.jsonl", "progress.json", "messages.jsonl"}
SHORT = {"teacher.steps": 60, "student.steps": 60, "teacher.warmup_steps": 10, "student.warmup_steps": 10}
COMMON = {**SHORT, "runtime.checkpoint_every": 30, "runtime.log_every": 5, "student.evaluations": 3}
TOGETHER = {"student.unlabeled_ratio": 4, "student.stochastic_depth": 0.1, "teacher.stochastic_depth": 0.1}
FINETUNE = {"finetune": {"image_size": 10, "steps": 20, "batch_size": 50}}
CASES: dict[str, dict[str, Any]] = {
    "noisy_student": {
        "student.accumulation": 2,
        "student.clip_norm": 5.0,
        "select.allow_empty_classes": True,
        **FINETUNE,
    },
    "uda": {"method": "uda", "uda.ramp_steps": 20, "uda.threshold": 0.5, **TOGETHER},
    "meta": {"method": "meta", "uda.ramp_steps": 20, "uda.threshold": 0.5, **TOGETHER, **FINETUNE},
    "reduced": {"method": "meta", "meta.teacher": "adjuster", "meta.student_wait": 5, **TOGETHER},
}
"""Overrides of configs/digits.yaml, in today's keys."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--work", type=Path, required=True, help="folder of the clones and runs; kept")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    before, after = (Checkout(commit, arguments.work) for commit in arguments.commits)
    num_different = compare_data(before, after)
    for case in arguments.cases:
        num_different += compare_runs(case, before.run(case), after.run(case))
    print(f"{num_different} differences between {before.commit} and {after.commit}")
    return min(num_different, 1)


class Checkout:
    """A clone of one commit, with its digits and its runs beside it."""

    def __init__(self, name: str, work: Path) -> None:
        self.commit = _git(ROOT, "rev-parse", "--short=10", name)
        self.folder = work / self.commit
        self.code = self.folder / "code"
        if not self.code.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _git(self.folder, "clone", "--quiet", "--no-checkout", str(ROOT), str(self.code))
            _git(self.code, "checkout", "--quiet", "--detach", self.commit)
        self.is_old = not (self.code / "pipeline" / "config" / "methods.py").exists()
        self.data = self.folder / "digits"
        module = "pipeline.shards.digits" if self.is_old else "pipeline.demos.digits"
        self._python("-m", module, str(self.data))

    def run(self, case: str) -> Path:
        """The finished run of a case."""
        folder = self.folder / "runs" / case
        values = {"data.root": self.data, "runtime.device": "cpu", **COMMON, **CASES[case]}
        sets = [
            f"{key}={json.dumps(value, default=str)}"
            for key, value in (_as_before(values) if self.is_old else values).items()
        ]
        options = [part for text in sets for part in ("--set", text)]
        print(f"{case} at {self.commit} ...", flush=True)
        self._python(
            "-m", "flows.cli", "run", "configs/digits.yaml", "--run-dir", str(folder), "--no-prefect", *options
        )
        return folder

    def _python(self, *arguments: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(self.code), "XDG_CACHE_HOME": str(self.folder / "cache")}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.code, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"{' '.join(command)} failed at {self.commit}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )


def _as_before(values: dict[str, Any]) -> dict[str, Any]:
    """The same settings in the keys of f8bc5ff, before the config followed the concepts."""
    moved = {"uda.ramp_steps": "meta.uda_steps", "student.targets": "select.targets"}
    values = {moved.get(key, key).replace("uda.", "meta.uda_"): value for key, value in values.items()}
    if values.get("method") not in ("uda", "meta"):
        return values
    shared = {key: value for key, value in values.items() if key.startswith("student.")}
    theirs = ("model", "model_args", "optimizer", "warmup_steps", "ema_decay", "dropout", "stochastic_depth")
    values |= {"student.noise_labeled": False, "student.loss_normalization": "labeled"}
    if values["method"] == "uda":  # its network was the section teacher's
        values |= {"teacher.dropout": 0.1}
    if values.get("meta.teacher") != "adjuster":  # the teacher repeats what it shares with the student
        own = {key.replace("student.", "teacher."): value for key, value in shared.items()}
        values |= {key: value for key, value in own.items() if key.split(".")[1] not in theirs}
        values |= {"teacher.noise_labeled": False, "teacher.loss_normalization": "labeled"}
        values |= {"teacher.strong": {"num_ops": 2, "magnitude": 4, "cutout": 2}}
    return values


# ----------------------------------------------------------------------------------------------------------- comparing


def compare_data(before: Checkout, after: Checkout) -> int:
    """The packed digits of both."""
    names = sorted(path.name for path in before.data.glob("*.tar"))
    different = [name for name in names if (before.data / name).read_bytes() != (after.data / name).read_bytes()]
    print(f"data: {len(names)} shards, {len(different)} differ")
    return len(different)


def compare_runs(case: str, before: Path, after: Path) -> int:
    """Every stage of both runs, in the order of result.json; returns how many files differ."""
    pairs = list(zip(_stages(before), _stages(after), strict=True))
    num_files = num_different = 0
    for (name, one), (_, other) in pairs:
        for relative in sorted({*_files(one), *_files(other)}):
            num_files += 1
            if problem := _difference(one / relative, other / relative):
                num_different += 1
                print(f"  {case}, {name}: {relative} {problem}")
    print(f"{case}: {len(pairs)} stages, {num_files} files, {num_different} differ")
    return num_different


def _files(stage: Path) -> Iterator[Path]:
    """The files of a stage that are compared, relative to it."""
    for path in stage.rglob("*"):
        relative = path.relative_to(stage)
        is_hidden = any(part[0] == "." for part in relative.parts)
        if path.is_file() and path.name not in NOT_COMPARED and path.suffix != ".png" and not is_hidden:
            yield relative


def _stages(run: Path) -> Iterator[tuple[str, Path]]:
    result = json.loads((run / "result.json").read_text())
    for entry in result["rounds"]:
        for kind in ("train", "label", "select"):
            if entry[f"{kind}_dir"]:
                yield f"round {entry['round']} {kind}", run / entry[f"{kind}_dir"]
    for number, control in enumerate(sorted((run / "control").glob("*-*"), key=lambda p: p.stat().st_mtime)):
        yield f"control {number}", control
    yield "evaluation", next(run.glob("evaluate-*"))


def _difference(one: Path, other: Path) -> str:
    """How two files differ; empty if they do not."""
    if not other.exists():
        # UDA's model was its own "teacher" in test.json.
        return "" if one.name == "predictions-teacher.npz" else "is gone"
    if one.read_bytes() == other.read_bytes():
        return ""
    if one.suffix == ".pt":
        return _first_difference(*map(_checkpoint, (one, other)))
    if one.suffix == ".arrow":
        x, y = (pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in (one, other))
        return "" if x.equals(y, check_metadata=False) else "has other columns"
    if one.name == "test.json":
        a, b = (json.loads(path.read_text()) for path in (one, other))
        return _first_difference({name: a[name] for name in b}, b)
    if one.name == "model.json":
        a, b = (json.loads(path.read_text()) for path in (one, other))
        return _first_difference({**a, "lineage": ""}, {**b, "lineage": ""})
    return "differs"


def _checkpoint(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if "teacher" in state and "student" not in state:  # UDA's network, as it was called at f8bc5ff
        state["network"] = state.pop("teacher")
        state.pop("baseline", None)
    return {**state, "fingerprint": ""}


def _first_difference(a: Any, b: Any, where: str = "") -> str:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return "" if torch.equal(a, b) else f"differs in {where}"
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        found = (_first_difference(a[key], b[key], f"{where}/{key}") for key in a)
        return next(filter(None, found), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        found = (_first_difference(x, y, f"{where}/{i}") for i, (x, y) in enumerate(zip(a, b, strict=True)))
        return next(filter(None, found), "")
    return "" if a == b else f"differs in {where}"


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
