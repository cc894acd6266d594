"""The examples of docs/scale_out.md for labeling on many machines, executed as they are written there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from support import slurm
from support.command import environment
from support.labeling_examples import example, of_parts, recording, shell, typed
from support.processes import outputs, run

from pipeline.config import Config, Start, changed, dump_yaml, load_config
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import Job
from pipeline.stages.part import PARTS

pytestmark = pytest.mark.process


def test_the_loop_over_hosts_types_the_parts_and_then_the_run(tmp_path: Path) -> None:
    shell(example("sh", "ssh"), tmp_path, recording(tmp_path))
    *parts, last = typed(tmp_path)
    assert parts == of_parts(4)
    assert last[:2] == ["run", "birds.yaml"]


def test_the_array_of_slurm_types_the_parts_before_the_run(tmp_path: Path) -> None:
    path = recording(tmp_path)
    (tmp_path / "parts.sh").write_text(example("sh", "#SBATCH"))
    (tmp_path / "run.sh").write_text("cp typed.jsonl before_the_run.jsonl")
    shell(example("sh", "sbatch --dependency"), tmp_path, path)
    (tmp_path / "before_the_run.jsonl").rename(tmp_path / "typed.jsonl")
    assert typed(tmp_path) == of_parts(8)
    assert (tmp_path / "slurm-1.txt").read_text().split() == ["0"] * 8


def test_the_indexed_job_of_kubernetes_types_the_parts(tmp_path: Path) -> None:
    """Its pods are not started; each runs this command with its index."""
    path = recording(tmp_path)
    spec = yaml.safe_load(example("yaml", "Indexed"))["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    for index in range(spec["completions"]):
        variables = environment(PATH=path, JOB_COMPLETION_INDEX=str(index))
        subprocess.run(container["command"], cwd=tmp_path, env=variables, check=True)
    assert typed(tmp_path) == of_parts(8)


class Labeled(Exception):
    """The run has its labels."""


@pytest.mark.slow
def test_an_array_of_slurm_labels_with_the_bytes_of_one_process(
    digits: Config, teacher: Path, labels: Path, tmp_path: Path
) -> None:
    path = slurm.install(tmp_path / "bin")
    start = Start(model=str(tmp_path / "champion"), mode="use")
    (tmp_path / "champion").symlink_to(teacher)
    (tmp_path / "birds.yaml").write_text(dump_yaml(changed(digits, teacher=changed(digits.teacher, start=start))))
    (tmp_path / "parts.sh").write_text(example("sh", "#SBATCH").replace("1-8", "1-3").replace("/8", "/3"))
    shell("sbatch parts.sh", tmp_path, path)
    assert (tmp_path / "slurm-1.txt").read_text().split() == ["0"] * 3
    found: list[Path] = []

    def until_labeled(job: Job, _lock: int) -> None:
        made = sorted(path.name for path in job.out.glob(f"{PARTS}/*/*.arrow"))
        found.append(run(job))
        if job.kind == "label":
            assert len(made) == 5
            raise Labeled

    with pytest.raises(Labeled):
        run_loop(load_config(tmp_path / "birds.yaml"), tmp_path / "runs" / "birds", run_stage=until_labeled)
    mine = {name: data for name, data in outputs(found[-1]).items() if not name.startswith(f"{PARTS}/")}
    assert mine == outputs(labels)
