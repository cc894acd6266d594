"""The command line is a contract that others script against."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support import command
from support.command import ROOT
from support.command import selftrain_here as selftrain
from support.fake_stages import with_section
from support.images import digit_files, write_files
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from flows.verbs import app
from pipeline.config import Config, dump_yaml, load_config
from pipeline.demos.digits import pack_digits
from pipeline.errors import UserError

METRICS = {"top1", "top5", "nll", "ece", "balanced_accuracy", "macro_f1", "num_samples"}
VERBS = {
    "pack": "SOURCE --out --split --shard-size --classes --labels-csv --image-column --label-column --split-column "
    "--drop --keep-classes --leave-out --labels --proportional --val-fraction --test-fraction --seed "
    "--skip-bad-images --skip-duplicates --value-range --zip-encoding --workers",
    "verify": "DIR",
    "intake": "SOURCE --data --at-least --settle --shard-size --workers",
    "init": "DIR --minutes --encoder --method",
    "run": "CONFIG --run-dir --set --no-prefect --accept-environment",
    "train": "CONFIG --out --selection --start --set --accept-environment",
    "join": "RUN",
    "label": "CONFIG --teacher --out --part --run-dir --set --accept-environment",
    "merge": "CONFIG --labels --out --set --accept-environment",
    "select": "CONFIG --labels --out --set --accept-environment",
    "evaluate": "MODEL DATA --split --with --crops --scales --mc-dropout --json",
    "predict": "MODEL IMAGES --out --split --with --top-k --probabilities --features --overwrite --bad-images "
    "--zip-encoding",
    "export": "RUN --out",
    "report": "RUN",
    "promote": "MODEL --to --if-better --level --reason --rollback",
    "inspect": "CONFIG --out --variant --steps --images --set",
    "ablate": "CONFIG --techniques --mode --seeds --out --set --parallel --no-prefect --accept-environment",
}


def verbs() -> dict[str, Any]:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return group.commands


pytestmark = pytest.mark.usefixtures("same_threads")


# --------------------------------------------------------------------------------------------------------- the contract


def test_the_verbs_are_these() -> None:
    assert set(verbs()) == set(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_arguments_and_options_are_these(name: str) -> None:
    arguments = [p.metavar for p in verbs()[name].params if p.param_type_name == "argument"]
    options = [o for p in verbs()[name].params if p.param_type_name == "option" for o in p.opts if o[:2] == "--"]
    assert {*arguments, *options} - {"--help"} == set(VERBS[name].split())


@pytest.mark.parametrize("name", VERBS)
def test_every_help_shows_an_example_of_the_verb(name: str) -> None:
    text = " ".join(selftrain(name, "--help").replace("│", " ").split())
    assert f"Example: selftrain {name} " in text


@pytest.mark.process
def test_help_loads_neither_torch_nor_prefect() -> None:
    code = (
        "import sys; from flows.verbs import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: print('loaded:', *({'torch', 'timm', 'prefect', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_a_wrong_split_is_refused_with_the_right_ones() -> None:
    done = CliRunner().invoke(app, ["evaluate", "x", "y", "--split", "tset"])
    assert done.exit_code == 2
    assert "did you mean" in done.output
    assert "test" in done.output


def test_labels_and_split_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --split out"):
        selftrain("pack", tmp_path, "--out", tmp_path / "out", "--labels", "10", "--split", "val")


@pytest.mark.parametrize("options", [["--seed", "0"], ["--proportional"]])
def test_options_of_a_carve_are_refused_without_one(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(UserError, match=rf"{' '.join(options)} is of a carve, which --labels N asks for"):
        selftrain("pack", tmp_path, "--out", tmp_path / "out", *options)


def test_names_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    files = {name.replace("/", "-"): data for name, data in digit_files(-12).items()}
    write_files(tmp_path / "in" / "digit[bold]", files)
    write_files(tmp_path / "in" / "other", digit_files(0, 1))
    out = tmp_path / "out[red]"
    text = selftrain("pack", tmp_path / "in", "--out", out, "--split", "val")
    assert "digit[bold]" in text
    assert "out[red]" in "".join(text.split())
    assert "13 images were packed before" in selftrain("pack", tmp_path / "in", "--out", out, "--split", "val")
    (tar,) = out.glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:-10240])
    done = CliRunner().invoke(app, ["verify", str(out)])
    assert "problem: " in done.stdout
    assert "out[red]" in str(done.exception)


# ------------------------------------------------------------------------------------------------------ the run folder


@pytest.mark.process
def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    for name in ("vögel", "fische"):
        write_files(
            tmp_path / "images" / name, {path.replace("/", "-"): data for path, data in digit_files(-3).items()}
        )
    command_line = [sys.executable, "-m", "flows.cli", "pack", "images", "--out", "packed"]
    variables = command.environment(PYTHONIOENCODING="ascii")
    done = subprocess.run(command_line, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "v\\xf6gel" in done.stdout, done.stdout


def test_a_run_takes_no_folder_of_the_users(tmp_path: Path) -> None:
    """`--run-dir .` used to move the user's config.yaml away and to write its own."""
    (tmp_path / "config.yaml").write_text("seed: 1  # mine")
    with pytest.raises(UserError, match=r"config\.yaml is where the run in .* writes its resolved config; copy it"):
        selftrain("run", tmp_path / "config.yaml", "--run-dir", tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 2")
    with pytest.raises(UserError, match=r"has files, such as config\.yaml, but is no run folder; choose another"):
        selftrain("run", tmp_path / "mine.yaml", "--run-dir", tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1  # mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "mine.yaml"]


# ------------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_prints_the_figures_of_a_packed_split(digits: Config, teacher: Path) -> None:
    assert digits.data.root is not None
    found = json.loads(selftrain("evaluate", teacher, digits.data.root, "--split", "val", "--json"))
    recorded = json.loads((teacher / "evaluation-val.json").read_text())
    assert set(found) >= METRICS
    assert found["num_samples"] == recorded["num_samples"]
    for name in ("top1", "top5", "nll", "ece"):  # in bf16 where the machine has it; the run was in fp32
        assert found[name] == pytest.approx(recorded[name], abs=0.01), name
    table = selftrain("evaluate", teacher, digits.data.root, "--split", "val")
    assert all(name in table for name in METRICS)


def test_a_folder_and_a_tar_of_images_give_equal_figures(teacher: Path, tmp_path: Path) -> None:
    files = digit_files(-120)
    folder, tar = write_files(tmp_path / "folder", files), tmp_path / "images.tar"
    with tarfile.open(tar, "w") as archive:
        for name in files:
            archive.add(folder / name, name)
    of_folder, of_tar = (json.loads(selftrain("evaluate", teacher, data, "--json")) for data in (folder, tar))
    assert of_folder == of_tar
    assert of_folder["num_samples"] == 120
    assert of_folder["top1"] > 0.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "images.tar"]  # nothing is written beside them


def test_classes_are_matched_by_name_not_by_order(teacher: Path, tmp_path: Path) -> None:
    files = {name: data for name, data in digit_files(-300).items() if name[0] in "37"}  # here 0 and 1, there 3 and 7
    write_files(tmp_path, files)
    assert json.loads(selftrain("evaluate", teacher, tmp_path, "--json"))["top1"] > 0.5
    (tmp_path / "7").rename(tmp_path / "seven")
    with pytest.raises(UserError, match="class 'seven', unknown to the model"):
        selftrain("evaluate", teacher, tmp_path, "--json")


def test_an_exported_file_evaluates_like_its_stage(digits: Config, teacher: Path, tmp_path: Path) -> None:
    assert digits.data.root is not None
    selftrain("export", teacher, "--out", tmp_path / "digits.safetensors")
    assert (tmp_path / "digits.json").exists()
    of_file, of_stage = (
        json.loads(selftrain("evaluate", model, digits.data.root, "--split", "val", "--json"))
        for model in (tmp_path / "digits.safetensors", teacher)
    )
    assert of_file == of_stage


def test_reads_of_test_are_logged_and_others_are_not(digits: Config, teacher: Path, tmp_path: Path) -> None:
    assert digits.data.root is not None
    run = make_run(tmp_path / "run[a]", digits, teacher)
    models = [run, run / "rounds/0/train-0", run / "rounds/0/train-0/model.safetensors"]
    selftrain("evaluate", run, digits.data.root, "--split", "val", "--json")
    assert not (run / "test_reads.jsonl").exists()
    for model in models:
        found = json.loads(selftrain("evaluate", model, digits.data.root, "--json"))
    lines = [json.loads(line) for line in (run / "test_reads.jsonl").read_text().splitlines()]
    assert [line["top1"] for line in lines] == [found["top1"]] * 3
    assert [run / line["model"] for line in lines] == models
    assert lines[0]["data"] == str(digits.data.root)


def test_a_training_whose_network_cannot_take_its_images_is_refused(digits: Config, tmp_path: Path) -> None:
    wrong = with_section(digits, "teacher", model="vit_tiny_patch16_224", model_args={}, stochastic_depth=0.0)
    (tmp_path / "wrong.yaml").write_text(dump_yaml(wrong))
    with pytest.raises(
        UserError, match=r"^teacher: `model`: vit_tiny_patch16_224 .* \(`image_size`\): .*; set image_size"
    ):
        selftrain("train", tmp_path / "wrong.yaml", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def make_run(folder: Path, config: Config, teacher: Path) -> Path:
    """A run folder whose final model is its teacher."""
    shutil.copytree(teacher, folder / "rounds/0/train-0")
    (folder / "result.json").write_text(json.dumps({"final": {"model_dir": "rounds/0/train-0"}}))
    (folder / "config.yaml").write_text(dump_yaml(config))
    (folder / "run.lock").write_text("")
    return folder


def test_a_stage_of_a_run_is_measured_as_the_run_measures(digits: Config, teacher: Path, tmp_path: Path) -> None:
    assert digits.data.root is not None
    mirrored = with_section(digits, "evaluate", flip=True)
    run = make_run(tmp_path / "run", mirrored, teacher)
    of_run, of_stage, of_teacher = (
        json.loads(selftrain("evaluate", model, digits.data.root, "--split", "val", "--json"))
        for model in (run, run / "rounds/0/train-0", teacher)
    )
    assert of_run == of_stage
    assert of_teacher["nll"] != of_stage["nll"]


def test_a_read_of_test_that_cannot_be_logged_does_not_happen(digits: Config, teacher: Path, tmp_path: Path) -> None:
    assert digits.data.root is not None
    run = make_run(tmp_path / "run", digits, teacher)
    (run / "test_reads.jsonl").symlink_to(run / "gone" / "test_reads.jsonl")
    with pytest.raises(UserError, match=r"cannot be logged in .*test_reads\.jsonl: .*or evaluate on val"):
        selftrain("evaluate", run, digits.data.root, "--json")
    selftrain("evaluate", run, digits.data.root, "--split", "val", "--json")


def test_unlabeled_images_cannot_be_evaluated_on(digits: Config, teacher: Path) -> None:
    assert digits.data.root is not None
    with pytest.raises(UserError, match="no labels to evaluate against"):
        selftrain("evaluate", teacher, digits.data.root, "--split", "unlabeled")


# -------------------------------------------------------------------------------------------------- pack -> init -> run


@pytest.mark.process
def test_what_init_prints_runs_without_edits(tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        pack_digits(tmp_path / "digits")
    (tmp_path / "digits.yaml").write_text(command.selftrain("init", "digits", cwd=tmp_path))
    settings = load_config(tmp_path / "digits.yaml")
    assert settings.teacher.model == "wide_resnet10_1"
    assert settings.data.root == Path("digits")
    few = ["teacher.steps=150", "student.steps=60", "rounds.num_rounds=1", "evaluate.control=false"]
    command.selftrain("run", "digits.yaml", "--no-prefect", *(f"--set={one}" for one in few), cwd=tmp_path)
    result = json.loads((tmp_path / "runs/digits/result.json").read_text())
    assert result["final"]["test_top1"] > 0.5
    assert (tmp_path / "runs/digits/report.html").exists()
    again = json.loads(selftrain("evaluate", tmp_path / "runs/digits", tmp_path / "digits", "--json"))
    assert again["top1"] == result["final"]["test_top1"]  # a run is measured the way it measured itself
