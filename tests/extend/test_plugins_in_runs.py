"""What a plugin is a part of, and what is said where it is missing, broken or edited."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.command import environment
from support.command import selftrain_here as selftrain
from support.page import (
    FEW,
    FILES,
    PLUGINS,
)
from support.plugins import forget
from support.processes import method_job, train_job

from pipeline.config import Config, changed, load_config
from pipeline.errors import UserError
from pipeline.stages.kinds import KINDS, fingerprint_of, read_job
from pipeline.stages.launch import run_job
from pipeline.stages.plugins import VARIABLE, add_plugins


def test_a_plugin_without_a_part_in_a_stage_changes_no_fingerprint(digits: Config, shards: Path) -> None:
    uda = changed(digits, method="uda")
    before = [fingerprint_of(job) for job in (train_job(digits, shards), method_job(uda, shards))]
    add_plugins([Path(name) for name in PLUGINS if name != "my_net.py"])  # which timm knows by now
    after = [fingerprint_of(job) for job in (train_job(digits, shards), method_job(uda, shards))]
    assert before == after


def test_the_fingerprint_goes_with_the_file_of_the_learner_and_with_plugins_that_it_imports(folder: Path) -> None:
    found = []
    for number in range(3):
        text = FILES["mean_teacher.py"].replace("import torch\n", "import my_helper\nimport torch\n")
        (folder / "mean_teacher.py").write_text(text + "# edited\n" * (number == 1))
        (folder / "my_helper.py").write_text("# edited\n" * (number == 2))
        add_plugins([Path("my_helper.py"), Path("mean_teacher.py")])
        config = load_config(Path("mean_teacher.yaml"), FEW)
        found.append(fingerprint_of(method_job(config, folder / "out")))
        forget()
    assert len(set(found)) == 3


def test_a_job_is_refused_by_a_child_without_its_plugin_or_with_another(folder: Path) -> None:
    add_plugins([Path("mean_teacher.py")])
    job = method_job(load_config(Path("mean_teacher.yaml"), FEW), folder / "out")
    (folder / "job.json").write_text(job.model_dump_json())
    assert read_job(folder / "job.json") == job
    forget()
    with pytest.raises(UserError, match=r"job\.json needs the plugin mean_teacher\.py; pass --plugin mean_teacher\.py"):
        read_job(folder / "job.json")


@pytest.mark.process
def test_a_file_that_was_edited_while_a_run_is_under_way_stops_its_next_stage(folder: Path) -> None:
    add_plugins([Path("my_count.py")])
    job = KINDS["count"].job.model_validate(
        {"out": folder / "count", "data": {"root": "shards/digits"}, "runtime": {"device": "cpu"}, "split": "val"}
    )
    Path("my_count.py").write_text(FILES["my_count.py"] + "\n# another thought\n")
    with pytest.raises(
        UserError, match=r"my_count\.py was edited after .*job\.json was written; type the command again"
    ):
        run_job(job)


@pytest.mark.usefixtures("forks")
def test_the_result_of_another_plugin_is_set_aside(folder: Path) -> None:
    few = ("--set", "student.steps=2", "--set", "evaluate.control=false")
    command = ("--plugin", "mean_teacher.py", "run", "mean_teacher.yaml", "--no-prefect", *few)
    selftrain(*command)
    first = Path("runs/mean_teacher/result.json").read_text()
    forget()
    Path("mean_teacher.py").write_text(FILES["mean_teacher.py"].replace(".square()", ".abs()"))
    selftrain(*command)
    (earlier,) = Path("runs/mean_teacher/earlier").iterdir()
    assert (earlier / "result.json").read_text() == first
    assert Path("runs/mean_teacher/result.json").read_text() != first
    assert len(list(Path("runs/mean_teacher/rounds/1").glob("train-*"))) == 2


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_without_its_plugin_a_config_says_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"there is no method 'mean_teacher', .*; a plugin's needs its --plugin"):
        selftrain("run", "mean_teacher.yaml")


def test_a_plugin_that_cannot_be_imported_stops_the_command_with_its_line() -> None:
    Path("broken.py").write_text("import json\n\nfrom pipeline.methods import registr_method\n")
    with pytest.raises(UserError, match=r"broken\.py cannot be imported \(line 3\): ImportError: .*'registr_method'"):
        selftrain("--plugin", "broken.py", "run", "mean_teacher.yaml")


# --------------------------------------------------------------------------------------------------------------- flows


@pytest.mark.process
def test_a_flow_knows_the_methods_of_plugins_that_the_environment_names(folder: Path) -> None:
    code = """
        from prefect.context import FlowRunContext
        from flows.run_name import run_name
        parameters = {"config": "mean_teacher.yaml", "run_dir": "runs/birds", "set": []}
        with FlowRunContext.model_construct(parameters=parameters):
            print(run_name())
    """
    variables = environment(**{VARIABLE: str(folder / "mean_teacher.py")})
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("birds: Mean Teacher"), done.stdout + done.stderr
