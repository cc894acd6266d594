"""The variables that the processes of a stage get."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import Runtime
from pipeline.stages.owner import LOCK_VARIABLE, PARENT_VARIABLE
from pipeline.threads import num_cores

KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
}
"""Settings of glibc for CPU stages. Each step allocates the same large tensors, and handing them back to the kernel in
between costs page faults. With these settings training is 7 to 19% and labeling 50% faster (docs/log.md). A user's own
values win."""

_OF_RANKS = re.compile(r"(LOCAL_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$|(PMI|PMIX|OMPI|MPI|MV2|PET)_")
"""What Accelerate or torchrun would take for the place of a process among ranks."""


def stage_variables(runtime: Runtime) -> dict[str, str]:
    """The variables by which the processes of a stage use what the runtime says."""
    threads = runtime.threads or max(1, num_cores() // runtime.processes)
    variables = {"OMP_NUM_THREADS": str(threads)}
    if runtime.device == "cpu":
        variables["ACCELERATE_USE_CPU"] = "true"
        variables |= {name: os.environ.get(name, value) for name, value in KEEP_FREED_MEMORY.items()}
    return variables


def child_variables(env: Mapping[str, str], lock_fd: int | None = None) -> dict[str, str]:
    """The environment of a child: ours, with variables to find this package and its parent, and with `env` on top.

    What srun, mpirun or torchrun told us of ranks is not the child's business, which would wait for the others.
    """
    variables = {
        **{name: value for name, value in os.environ.items() if not _OF_RANKS.match(name)},
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONSAFEPATH": "1",  # else a folder `pipeline` where the user works would shadow ours
        PARENT_VARIABLE: str(os.getpid()),
        **env,
    }
    root = Path(__file__).resolve().parents[2]
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    from_source = root.name not in {"site-packages", "dist-packages"}
    others = [Path(folder) / name for folder in folders for name in ("pipeline", "flows")]
    if from_source or any(map(Path.exists, others)):  # which would come before ours
        variables["PYTHONPATH"] = os.pathsep.join([str(root), *folders])
    if lock_fd is not None:
        variables[LOCK_VARIABLE] = str(lock_fd)
    return variables
