"""`selftrain run` with a loop of fake stages, in a process of its own: `python fake_run.py SECONDS run CONFIG ...`.

Everything but the loop and the stages is real: the command, Prefect, the launcher, the children.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Config, Data, Label, Runtime
from pipeline.errors import UserError
from pipeline.stages.jobs import Job, LabelJob

NUM_ROUNDS = 2
METRICS = {"top1": 0.8, "top5": 0.9, "nll": 0.5, "ece": 0.1, "num_samples": 100, "interval": [0.7, 0.9]}


def job(run_dir: Path, round: int) -> LabelJob:
    runtime = Runtime(device="cpu", threads=1)
    return LabelJob(
        out=run_dir / f"label-{round}", round=round, data=Data(), label=Label(), runtime=runtime, teachers=()
    )


def fake_loop(
    config: Config,
    run_dir: Path,
    *,
    run_stage: Callable[[Job, int], None],
    on_round: Callable[[Any], None] | None = None,
    accept_environment: bool = False,
) -> dict[str, Any]:
    from pipeline.methods.round import Round
    from pipeline.stages.lock import run_lock

    if config.seed == 13:
        raise UserError("data.root: nothing there; pack first")
    rounds = []
    with run_lock(run_dir) as lock_fd:
        for number in range(NUM_ROUNDS):
            out = job(run_dir, number).out
            if not (out / "done").exists():
                run_stage(job(run_dir, number), lock_fd)
            rounds.append(
                Round(number, "student", "tiny", 0.8, (0.7, 0.9), 5 * number, True, out, out, None),
            )
            if on_round:
                on_round(rounds[-1])
    final = {"round": 1, "val_top1": 0.8, "test_top1": 0.75, "teacher_test_top1": 0.7, "control_test_top1": None}
    entries = [
        {"round": r.round, "role": r.role, "model": r.model, "val_top1": r.val_top1, "interval": r.interval}
        | {"num_selected": r.num_selected}
        for r in rounds
    ]
    return {"schema": 1, "rounds": entries, "final": final}


def fake_stage(out: Path, seconds: float) -> int:
    """Takes its time, or until there is a file `go`; saves and exits 75 on SIGTERM."""
    from pipeline.stages.fingerprint import StageInputs
    from pipeline.stages.folder import open_folder
    from pipeline.stages.owner import die_with_parent
    from pipeline.stages.progress import report

    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    die_with_parent(signal.SIGKILL)
    open_folder(out, "label", 1, StageInputs({}, {}), {})
    (out / "began").touch()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (out / "go").exists():
        report(out, 1, 2, "steps", "loss 0.1")
        time.sleep(0.05)
        if stopped:
            (out / "saved").touch()
            return 75
    (out / "evaluation-val.json").write_text(json.dumps(METRICS))
    report(out, 2, 2, "steps", "loss 0.05")
    (out / "done").touch()
    return 0


def fake_report(run_dir: Path) -> Path:
    (run_dir / "report.html").touch()
    return run_dir / "report.html"


def install(seconds: float) -> None:
    """Put the fakes where the run command finds them."""
    from pipeline.report import page
    from pipeline.runs import loop
    from pipeline.stages import launch

    launch.CHILD = (sys.executable, __file__, "stage", str(seconds))
    loop.run_loop = fake_loop
    page.write_report = fake_report


if __name__ == "__main__":
    if sys.argv[1] == "stage":
        sys.exit(fake_stage(Path(sys.argv[3]).parent, float(sys.argv[2])))
    install(float(sys.argv.pop(1)))
    from flows.cli import main

    main()
