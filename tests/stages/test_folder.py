"""What is done with a stage folder that exists."""

from __future__ import annotations

IMPORTS


def test_a_finished_stage_is_complete_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    opened = open_stage(tmp_path / "s", "train", {"a": 1}, {}, ENVIRONMENT)
    assert not opened.complete
    with pytest.raises(UserError, match="is an unfinished stage; type the command that began it again"):
        stage_record(tmp_path / "s")
    assert not open_stage(tmp_path / "s", "train", {"a": 1}, {}, ENVIRONMENT).complete
    opened.finish(best=3)
    assert open_stage(tmp_path / "s", "train", {"a": 1}, {}, ENVIRONMENT).complete
    assert stage_record(tmp_path / "s")["outputs"] == {"best": 3}


def test_another_config_input_or_kind_is_refused_by_name(tmp_path: Path) -> None:
    open_stage(tmp_path, "train", {"a": 1}, {"x": "1"}, ENVIRONMENT)
    for kind, config, inputs, text in (
        ("train", {"a": 2}, {"x": "1"}, r"other settings \(a: 1 -> 2\)"),
        ("train", {"a": 1}, {"x": "2"}, r"other settings \(x: '1' -> '2'\)"),
        ("label", {"a": 1}, {"x": "1"}, "holds a train stage"),
    ):
        with pytest.raises(UserError, match=text):
            open_stage(tmp_path, kind, config, inputs, ENVIRONMENT)  # type: ignore[arg-type]


def test_the_environment_matters_only_to_an_unfinished_stage(tmp_path: Path) -> None:
    opened = open_stage(tmp_path, "train", {}, {}, ENVIRONMENT)
    other = {**ENVIRONMENT, "torch": "3"}
    with pytest.raises(UserError, match=r"torch: '2' -> '3'.*--accept-environment"):
        open_stage(tmp_path, "train", {}, {}, other)
    opened.finish()
    assert open_stage(tmp_path, "train", {}, {}, other).complete


def test_launchers_files_do_not_make_a_folder_foreign_and_others_do(tmp_path: Path) -> None:
    for name in stage.OWN_FILES:
        (tmp_path / name).write_text("")
    (tmp_path / "job.json").write_text('{"kind": "select", "out": "here"}')
    open_stage(tmp_path, "select", {}, {}, {})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "job.json").write_text('{"boss": "me"}')  # the user's, though it has the name of ours
    with pytest.raises(UserError, match="is not empty and not a select stage"):
        open_stage(tmp_path / "b", "select", {}, {}, {})
