"""The examples of docs/extend.md, taken from the page, do what it says: on digits, by the command, with real stages.

The file is long because the four examples share what is extracted and trained once.
"""

from __future__ import annotations

import json
import math
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command import ROOT, environment
from support.command import selftrain_here as selftrain
from support.plugins import forget, importing
from support.processes import has_come_to, kill, method_job, outputs, run, start, train_job
from support.waiting import wait_for

from pipeline.config import Config, changed, load_config, parse, semantic
from pipeline.config.base import is_technique, set_key
from pipeline.demos.digits import pack_digits
from pipeline.errors import UserError
from pipeline.models.format import load_model, model_digest
from pipeline.stages import launch, plugins
from pipeline.stages.jobs import Job
from pipeline.stages.kinds import KINDS, fingerprint_of, read_job
from pipeline.stages.launch import run_job
from pipeline.stages.plugins import VARIABLE, add_plugins
from pipeline.techniques import TECHNIQUES, field_of

PAGE = (ROOT / "docs/extend.md").read_text()
FILES = {
    match[2]: match[1] for match in re.finditer(r"```\w+\n((?:# |<!-- )([\w.]+\.(?:py|yaml|md))\b.*?)```", PAGE, re.S)
}
COMMANDS = [shlex.split(line) for line in dict.fromkeys(re.findall(r"^selftrain --plugin .*$", PAGE, re.M))]
PLUGINS = ("my_net.py", "my_noise.py", "mean_teacher.py", "my_count.py")
FEW = ("student.steps=20", "student.evaluations=2", "runtime.precision=fp32", "runtime.log_every=5")
OFTEN = "runtime.checkpoint_every=5"


# ------------------------------------------------------------------------------------------------------------ fixtures


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extend") / "digits"
    pack_digits(folder)
    return folder


@pytest.fixture(autouse=True)
def folder(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader works: the files of the page beside the packed digits."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/digits").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setenv(VARIABLE, "")
    yield
    forget()


@pytest.fixture
def forks(children: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages of a command run in forks, which start sooner than its own children, and import the same files."""

    def in_a_fork(job: Job, lock_fd: int | None = None, **_: object) -> None:
        run(job, importing())

    monkeypatch.setattr(launch, "run_job", in_a_fork)


def run_page(plugin: str, *settings: str) -> str:
    """Every command of the page about a plugin, with few steps in its run; returns what they printed."""
    first, *others = (words[1:] for words in COMMANDS if words[2] == plugin)
    text = selftrain(*first, "--no-prefect", *(f"--set={one}" for one in (*FEW, *settings)))
    return text + "".join(selftrain(*words) for words in others)


def stage_in(run_dir: str, kind: str) -> Path:
    (found,) = Path(run_dir).glob(f"{kind}-*")
    return found.absolute()


def assert_same_after_kills(whole: Path) -> None:
    """That the training of a finished stage, killed twice, leaves the same bytes."""
    cut = changed(read_job(whole / "job.json"), out=Path("cut").absolute())
    for step in (5, 10):
        child = start(cut, importing())
        wait_for(partial(lambda child, step: has_come_to(cut, step) or not child.is_alive(), child, step))
        kill(child, 0.0)
    run(cut, importing())
    assert outputs(cut.out) == outputs(whole)


def noisy_config(noise: str = "") -> Config:
    """The page's config of the technique, with another section of the method."""
    section = f"noisy_uda: {noise}" if noise else ""
    text = re.sub(r"^noisy_uda: .*$", section, FILES["my_noise.yaml"], flags=re.M)
    Path("other.yaml").write_text(text)
    config = load_config(Path("other.yaml"), [*FEW, "student.steps=3"])
    return changed(config, runtime=changed(config.runtime, device="cpu"))


def record(job: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job / "stage.json").read_text())
    return found


def test_the_page_has_an_example_for_each_of_the_four_questions() -> None:
    assert {*PLUGINS, "my_net.yaml", "my_noise.yaml", "mean_teacher.yaml", "my_noise.md", "count_digits.py"} == set(
        FILES
    )
    assert {words[2] for words in COMMANDS} == {*PLUGINS} - {"my_count.py"}


# -------------------------------------------------------------------------------------------------------- architecture


@pytest.mark.usefixtures("forks")
def test_an_architecture_of_a_plugin_is_trained_labels_is_evaluated_and_exported() -> None:
    text = run_page("my_net.py", "teacher.steps=150", "student.steps=150")
    assert "import my_net  # registers my_net with timm" in text
    result = json.loads(Path("runs/my_net/result.json").read_text())
    assert [entry["model"] for entry in result["rounds"]] == ["my_net", "my_net"]
    assert result["final"]["test_top1"] > 0.5
    assert Path("runs/my_net/report.html").exists()
    import timm  # which pipeline.models lets be imported

    exported = timm.create_model("my_net", num_classes=10, checkpoint_path="my_net.safetensors", width=32).eval()
    ours, _ = load_model(Path("runs/my_net"))
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(exported(images), ours(images), rtol=0, atol=0)

    # What the network computes is a part of what is trained, labeled and evaluated with it.
    digest = plugins.digests()["my_net.py"]
    assert record(stage_in("runs/my_net/rounds/0", "train"))["config"]["training"]["my_net.py"] == digest
    labels = read_job(stage_in("runs/my_net/rounds/1", "label") / "job.json")
    before = fingerprint_of(labels), model_digest(Path("runs/my_net"))
    plugins._LOADED["my_net"] = replace(plugins._LOADED["my_net"], digest="of an edited file")
    after = fingerprint_of(labels), model_digest(Path("runs/my_net"))
    assert before[0] != after[0]
    assert before[1] != after[1]
    with pytest.raises(
        UserError, match=r"was trained with my_net of my_net\.py \(.*here it is that of my_net\.py \(of an e"
    ):
        load_model(Path("runs/my_net"))


# ----------------------------------------------------------------------------------------------------------- technique


@pytest.mark.usefixtures("forks")
def test_a_technique_that_is_off_moves_no_bit() -> None:
    """With the noise off, the method that has it is UDA; with it on, it is another one."""
    add_plugins([Path("my_noise.py")])
    without = run(method_job(noisy_config("{noise: null}"), Path("without").absolute()), importing())
    noisy = run(method_job(noisy_config("{noise: {std: 0.1}}"), Path("noisy").absolute()), importing())
    raw = noisy_config().model_dump(mode="json", exclude={"noisy_uda", "method"})
    uda = run(method_job(parse(Config, {**raw, "method": "uda"}, "uda"), Path("uda").absolute()), importing())
    weights = [(stage / "model.safetensors").read_bytes() for stage in (without, noisy, uda)]
    assert weights[0] == weights[2]
    assert weights[1] != weights[2]


def test_a_technique_that_is_off_changes_no_fingerprint() -> None:
    add_plugins([Path("my_noise.py")])
    names = ("", "{noise: null}", "{noise: {}}", "{noise: {std: 0.2}}")
    found = [fingerprint_of(method_job(noisy_config(text), Path("out"))) for text in names]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert semantic(noisy_config().noisy_uda) == {}


@pytest.mark.usefixtures("forks")
def test_a_method_with_a_technique_of_a_plugin_runs_and_resumes_bit_exact() -> None:
    run_page("my_noise.py", OFTEN)
    assert json.loads(Path("runs/my_noise/result.json").read_text())["method"] == "noisy_uda"
    assert_same_after_kills(stage_in("runs/my_noise/rounds/1", "train"))


def test_noise_is_normal_and_a_function_of_position() -> None:
    add_plugins([Path("my_noise.py")])
    add_noise = import_module("my_noise").add_noise
    images, positions = torch.zeros(64, 3, 16, 16), np.arange(64, dtype=np.uint64)
    noise = add_noise(images, positions, 0.5, 7)
    assert torch.equal(noise[20:], add_noise(images[20:], positions[20:], 0.5, 7)), (
        "it depends on the rest of the batch"
    )
    assert not torch.equal(noise, add_noise(images, positions, 0.5, 8))
    values = noise.numpy().ravel() / 0.5
    for limit in np.linspace(-3, 3, 13):  # 49,152 draws: the largest error of a share is below 0.01
        assert (values < limit).mean() == pytest.approx((1 + math.erf(limit / math.sqrt(2))) / 2, abs=0.01)


def test_the_row_of_a_plugins_technique_holds_as_selftrains_own_do() -> None:
    add_plugins([Path("my_noise.py")])
    row = TECHNIQUES["my_noise"]
    assert is_technique(field_of(row.switch))
    raw = noisy_config().model_dump(mode="json")
    for value in (row.on, row.off):
        set_key(raw, row.switch, value, "test")
        parse(Config, raw, "test")
    module, _, name = row.code.partition(":")
    assert callable(getattr(import_module(module), name))
    assert row.card is not None
    card = row.card.read_text()
    for part in ("Effect", "Cost", "Avoid when", "Source", "Test", "Measured here", "`noisy_uda.noise`"):
        assert part in card
    file, test = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", card)[0]
    assert f"def {test}(" in (ROOT / file).read_text()


# -------------------------------------------------------------------------------------------------------------- method


@pytest.mark.usefixtures("forks")
def test_a_method_of_a_plugin_runs_with_its_control_and_resumes_bit_exact_after_kills() -> None:
    run_page("mean_teacher.py", OFTEN)
    final = json.loads(Path("runs/mean_teacher/result.json").read_text())["final"]
    assert final["control_test_top1"] is not None
    assert Path("runs/mean_teacher/report.html").exists()
    whole = stage_in("runs/mean_teacher/rounds/1", "train")
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(line["consistency_loss"] > 0 for line in lines if "loss" in line)
    assert_same_after_kills(whole)


def test_a_typo_in_the_section_of_a_plugin_is_an_error_as_any_other() -> None:
    with pytest.raises(UserError, match=r"unknown key `mean_teacher\.weihgt`, did you mean `weight`\?"):
        selftrain("--plugin", "mean_teacher.py", "run", "mean_teacher.yaml", "--set", "mean_teacher.weihgt=1")
    with pytest.raises(UserError, match=r"`mean_teacher\.weight`: Input should be greater than or equal to 0"):
        selftrain("run", "mean_teacher.yaml", "--set", "mean_teacher.weight=-1")


# ---------------------------------------------------------------------------------------------------------- stage kind


@pytest.mark.process
def test_a_stage_kind_of_a_plugin_runs_from_a_script_in_a_real_child(monkeypatch: pytest.MonkeyPatch) -> None:
    runpy.run_path("count_digits.py")
    counts = json.loads(Path("work/count/count.json").read_text())
    assert counts == {str(digit): 10 for digit in range(10)}
    assert record(Path("work/count"))["complete"]

    forget()
    Path("my_count.py").write_text(FILES["my_count.py"] + "\n# another thought\n")
    monkeypatch.setattr("pipeline.stages.launch.run_child", lambda command, out, **_: run_here(out))
    with pytest.raises(
        UserError, match=r"work/count holds a count stage with other settings \(my_count\.py: '\w+' -> "
    ):
        runpy.run_path("count_digits.py")


def run_here(out: Path) -> None:
    from pipeline.stages.preamble import run_stage

    run_stage(read_job(out / "job.json"))


# -------------------------------------------------------------------------------------------------- what a plugin is in


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
def test_a_flow_offers_the_methods_of_plugins_that_the_environment_names(folder: Path) -> None:
    code = (
        "from flows.flow import self_train; print(self_train.parameters.definitions['Config']['properties']['method'])"
    )
    variables = environment(**{VARIABLE: str(folder / "mean_teacher.py")})
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert "'mean_teacher'" in done.stdout, done.stderr
