"""The examples of docs/extend.md, taken from the page, do what it says: on digits, by the command, with real stages."""

from __future__ import annotations

import json
import math
import re
import runpy
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import ROOT
from support.command import selftrain_here as selftrain
from support.page import (
    COMMANDS,
    FILES,
    OFTEN,
    PLUGINS,
    assert_same_after_kills,
    noisy_config,
    record,
    run_page,
    stage_in,
)
from support.plugins import forget, importing
from support.processes import method_job, run

from pipeline.config import Config, parse, semantic
from pipeline.config.base import is_technique, set_key
from pipeline.errors import UserError
from pipeline.models.format import load_model, model_digest
from pipeline.stages import plugins
from pipeline.stages.kinds import fingerprint_of, read_job
from pipeline.stages.plugins import add_plugins
from pipeline.techniques import TECHNIQUES, field_of


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
