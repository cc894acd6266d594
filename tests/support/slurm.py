"""Stand-ins for `srun` and `sbatch`: what they start and tell it, on this machine alone and at once.

`python slurm.py srun --nodes=N COMMAND ...` starts the command N times, each in a session of its own, with variables of
Slurm and of its PMI, and exits with the highest code. `python slurm.py sbatch [--parsable] [--dependency=afterany:ID]
SCRIPT` runs the script, or each index of its `#SBATCH --array=A-B`, to its end, notes the exit codes in `slurm-ID.txt`,
and prints the id.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def install(folder: Path) -> str:
    """Put both commands into a folder; returns a PATH with it, and with the `selftrain` of this checkout."""
    folder.mkdir()
    lines = {name: f'exec {sys.executable} {__file__} {name} "$@"' for name in ("srun", "sbatch")}
    lines["selftrain"] = f'exec {sys.executable} -m flows.cli "$@"'
    for name, line in lines.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def srun(*arguments: str) -> int:
    """Start the copies and wait for them."""
    number = next(int(option.partition("=")[2]) for option in arguments if option.startswith("--nodes="))
    command = [argument for argument in arguments if not argument.startswith("--nodes=")]
    tasks = []
    for node in range(number):
        told = {
            "SLURM_NODEID": node,
            "SLURM_PROCID": node,
            "SLURM_NNODES": number,
            "PMI_RANK": node,
            "PMI_SIZE": number,
        }
        variables = {**os.environ, **{name: str(value) for name, value in told.items()}}
        tasks.append(subprocess.Popen(command, env=variables, start_new_session=True))
    return max(abs(task.wait()) for task in tasks)


def sbatch(*arguments: str) -> int:
    """Run the script, or its array with all indexes side by side, to the end."""
    script = Path(arguments[-1])
    found = re.search(r"^#SBATCH .*--array=(\d+)-(\d+)", script.read_text(), re.MULTILINE)
    indexes = range(int(found[1]), int(found[2]) + 1) if found else [0]
    tasks = [
        subprocess.Popen(["sh", str(script)], env={**os.environ, "SLURM_ARRAY_TASK_ID": str(index)}, stdout=2)
        for index in indexes
    ]
    codes = [task.wait() for task in tasks]
    number = 1 + len(list(Path().glob("slurm-*.txt")))
    Path(f"slurm-{number}.txt").write_text(" ".join(map(str, codes)))
    print(number)
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "sbatch": sbatch}[sys.argv[1]](*sys.argv[2:]))
