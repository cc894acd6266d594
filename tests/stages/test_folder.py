"""What is done with a stage folder that exists."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.damage import put

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import (
    OWN_FILES,
    check_output,
    check_stage_folder,
    finish_folder,
    is_finished,
    open_folder,
    stage_record,
)

ENVIRONMENT = {"torch": "2", "threads": 1}
INPUTS = StageInputs({"a": 1}, {"x": "1"})
NONE = StageInputs({}, {})


def test_a_finished_stage_is_complete_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    stage = tmp_path / "s"
    assert not is_finished(stage)
    assert not open_folder(stage, "train", 1, INPUTS, ENVIRONMENT)
    with pytest.raises(UserError, match="is an unfinished stage; type the command that began it again"):
        stage_record(stage)
    assert not is_finished(stage)
    assert not open_folder(stage, "train", 1, INPUTS, ENVIRONMENT)
    finish_folder(stage, [], best=3)
    assert is_finished(stage)
    assert open_folder(stage, "train", 1, INPUTS, ENVIRONMENT)
    assert stage_record(stage)["outputs"] == {"best": 3}


def test_a_finished_stage_of_which_a_file_was_deleted_is_taken_up_again(tmp_path: Path) -> None:
    open_folder(tmp_path, "train", 1, INPUTS, ENVIRONMENT)
    for name in ("model.json", "metrics.jsonl"):
        (tmp_path / name).write_text("{}")
    finish_folder(tmp_path, ["model.json"])
    (tmp_path / "metrics.jsonl").unlink()  # no stage needs it
    assert open_folder(tmp_path, "train", 1, INPUTS, ENVIRONMENT)
    (tmp_path / "model.json").unlink()
    assert not is_finished(tmp_path)
    assert not open_folder(tmp_path, "train", 1, INPUTS, ENVIRONMENT)


def test_another_config_input_kind_or_version_is_refused_by_name(tmp_path: Path) -> None:
    open_folder(tmp_path, "train", 1, INPUTS, ENVIRONMENT)
    for kind, version, inputs, text in (
        ("train", 1, StageInputs({"a": 2}, {"x": "1"}), r"other settings \(a: 1 -> 2\)"),
        ("train", 1, StageInputs({"a": 1}, {"x": "2"}), r"other settings \(x: '1' -> '2'\)"),
        ("train", 2, INPUTS, r"other settings \(stage format\)"),
        ("label", 1, INPUTS, "holds a train stage"),
    ):
        with pytest.raises(UserError, match=text):
            open_folder(tmp_path, kind, version, inputs, ENVIRONMENT)


def test_what_changed_is_named_key_by_key(tmp_path: Path) -> None:
    inputs = StageInputs({"training": {"steps": 5, "optimizer": {"lr": 0.1}}}, {})
    open_folder(tmp_path, "train", 1, inputs, {})
    other = StageInputs({"training": {"steps": 5, "optimizer": {"lr": 0.2}}}, {})
    with pytest.raises(UserError, match=r"with other settings \(training\.optimizer\.lr: 0\.1 -> 0\.2\);"):
        open_folder(tmp_path, "train", 1, other, {})


def test_the_environment_matters_only_to_an_unfinished_stage(tmp_path: Path) -> None:
    open_folder(tmp_path, "train", 1, NONE, ENVIRONMENT)
    other = {**ENVIRONMENT, "torch": "3"}
    with pytest.raises(UserError, match=r"torch: '2' -> '3'.*--accept-environment"):
        open_folder(tmp_path, "train", 1, NONE, other)
    finish_folder(tmp_path, [])
    assert open_folder(tmp_path, "train", 1, NONE, other)


def test_an_environment_that_was_accepted_is_noted_beside_those_before(tmp_path: Path) -> None:
    open_folder(tmp_path, "train", 1, NONE, ENVIRONMENT)
    other = {**ENVIRONMENT, "torch": "3"}
    assert not open_folder(tmp_path, "train", 1, NONE, other, accept_environment=True)
    assert not open_folder(tmp_path, "train", 1, NONE, other)
    finish_folder(tmp_path, [])
    record = stage_record(tmp_path)
    assert (record["environment"], record["earlier_environments"]) == (other, [ENVIRONMENT])


def test_a_changed_output_of_a_finished_stage_is_refused_with_what_to_delete(tmp_path: Path) -> None:
    open_folder(tmp_path, "train", 1, NONE, {})
    for name in ("a", "metrics.jsonl"):
        (tmp_path / name).write_text("old")
    assert check_output(tmp_path / "a") == tmp_path / "a"  # nothing is recorded yet
    finish_folder(tmp_path, ["a"])
    for name, fix in {
        "a": "delete this file",
        "metrics.jsonl": f"delete this file to go without its curves, or delete {tmp_path} ",
    }.items():
        assert check_output(tmp_path / name).read_text() == "old"
        put(tmp_path / name, b"new")
        with pytest.raises(UserError, match=rf"{name} is damaged: its bytes are not .*{fix}"):
            check_output(tmp_path / name)
        put(tmp_path / name, b"old")
        check_output(tmp_path / name)


def test_a_stage_that_is_made_again_takes_nothing_that_is_damaged(tmp_path: Path) -> None:
    open_folder(tmp_path, "train", 1, NONE, {})
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    finish_folder(tmp_path, ["a", "b"])
    (tmp_path / "a").unlink()
    put(tmp_path / "b", b"new")
    with pytest.raises(UserError, match=r"b is damaged"):
        open_folder(tmp_path, "train", 1, NONE, {})
    (tmp_path / "b").unlink()
    assert not open_folder(tmp_path, "train", 1, NONE, {})
    (tmp_path / "b").write_text("made on another machine, which was accepted")
    check_output(tmp_path / "b")


def test_a_stage_from_before_digests_is_reused(tmp_path: Path) -> None:
    open_folder(tmp_path, "train", 1, NONE, {})
    (tmp_path / "a").write_text("old")
    finish_folder(tmp_path, ["a"])
    record = read_json(tmp_path / "stage.json")
    write_json(tmp_path / "stage.json", {key: value for key, value in record.items() if key != "digests"})
    assert open_folder(tmp_path, "train", 1, NONE, {})
    check_output(tmp_path / "a")


def test_launchers_files_do_not_make_a_folder_foreign_and_others_do(tmp_path: Path) -> None:
    for name in OWN_FILES:
        (tmp_path / name).write_text("")
    (tmp_path / "job.json").write_text('{"kind": "select", "out": "here"}')
    open_folder(tmp_path, "select", 1, NONE, {})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "job.json").write_text('{"boss": "me"}')  # the user's, though it has the name of ours
    with pytest.raises(UserError, match="is not empty and not a select stage"):
        open_folder(tmp_path / "b", "select", 1, NONE, {})


def test_a_stage_that_has_lost_its_record_is_told_from_a_folder_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"kind": "select", "out": "here"}')
    (tmp_path / "selection.arrow").touch()
    message = r"\(selection\.arrow\).* lost its stage\.json, delete the folder and type the same command again"
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path, "select", 1, NONE, {})


def test_a_stage_of_another_kind_is_refused_before_its_job_is_replaced(tmp_path: Path) -> None:
    open_folder(tmp_path, "train", 1, NONE, {})
    with pytest.raises(UserError, match=r"holds a train stage; choose another output folder"):
        check_stage_folder(tmp_path, "select")
