"""Every command that an error message proposes is tried: a test types it, and it mends what the message is about."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import ROOT
from support.images import class_files, write_files
from support.imports import sources
from typer.testing import CliRunner

from flows.verbs import app
from pipeline.ablation.rows import read_rows
from pipeline.config import Config, Data, changed, dump_yaml, load_config
from pipeline.errors import UserError
from pipeline.labels.store import LabelStore
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.selection.targets import open_selection
from pipeline.shards.dataset import open_split
from pipeline.starter import speed
from pipeline.starter.plan import starting_config

TRIED = {
    "selftrain pack IMAGES --out {} --split {}": "test_a_missing_split_is_packed_by_the_command",
    "selftrain pack IMAGES --out {}": "test_a_missing_manifest_is_written_by_the_command",
    "selftrain pack {} --out {}{}{}": "test_labels_in_a_table_are_refused_with_the_command_that_reads_them",
    "selftrain pack {} --out {} --split {}{}": "test_splits_are_no_classes_and_the_commands_pack_each",
    "selftrain evaluate {} {} --split {}": "test_the_commands_of_messages_are_those_of_evaluate",
    "selftrain init DATA > {}": "test_a_missing_config_is_written_by_the_command",
    "selftrain label": "test_labels_that_are_damaged_are_made_again_as_the_message_says",
    "selftrain select": "test_a_selection_that_is_damaged_is_made_again_as_the_message_says",
    "selftrain ablate CONFIG --out DIR": "test_an_ablation_goes_on_where_it_was_stopped_and_reads_no_test",
    "selftrain run": "test_a_method_that_is_no_single_training_is_run_by_the_verb_that_the_message_names",
    "selftrain join {}": "test_two_hosts_that_share_nothing_but_files_train_with_the_bits_of_two_processes",
    "selftrain pack": "test_foreign_tars_are_asked_the_same",
}
"""Command, with {} for what is filled in -> the test that types it."""


def commands_in(path: Path) -> Iterator[str]:
    """The commands in the texts of a file that are no docstrings."""
    tree = ast.parse(path.read_text())
    quiet = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            quiet |= {id(part) for part in node.values}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quiet:
            text = node.value
        else:
            continue
        yield from re.findall(r"`(selftrain [^`]*)`", text)
        yield from re.findall(r"^(selftrain \w+ \{\}.*)$", text)


def test_every_command_of_a_message_has_a_test_that_types_it() -> None:
    verbs = {
        path for folder in ("pipeline/cli", "flows") for path in sources(folder)
    }  # their help, which another test reads
    proposed = {command for path in sources("pipeline") if path not in verbs for command in commands_in(path)}
    assert proposed == TRIED.keys() - {"selftrain run"} or proposed == TRIED.keys()
    texts = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [test for test in TRIED.values() if f"def {test}(" not in texts] == []


def type_in(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.output


def command_of(error: BaseException, **values: str) -> list[str]:
    """The command between backquotes in a message, with its capitals filled in."""
    (command,) = re.findall(r"`selftrain ([^`]*)`", str(error))
    return [values.get(word, word) for word in command.split()]


def test_a_missing_manifest_is_written_by_the_command(tmp_path: Path) -> None:
    images = write_files(tmp_path / "images", class_files(2))
    with pytest.raises(UserError, match=r"has no manifest\.json") as caught:
        open_split(Data(root=tmp_path / "out"), "labeled")
    type_in(*command_of(caught.value, IMAGES=str(images)))
    assert len(open_split(Data(root=tmp_path / "out"), "labeled")) == 6


def test_a_missing_split_is_packed_by_the_command(tmp_path: Path) -> None:
    pack(write_files(tmp_path / "images", class_files(2)), tmp_path / "out", split="labeled")
    for first, split in ((50_000, "unlabeled"), (90_000, "val")):
        with pytest.raises(UserError, match=f"has no {split}") as caught:
            starting_config(tmp_path / "out")
        more = write_files(tmp_path / split, class_files(2, first=first))
        text = str(caught.value).replace("`--labels N`", "")
        type_in(*command_of(UserError(text), IMAGES=str(more)))
        assert len(open_split(Data(root=tmp_path / "out"), split)) == 6  # type: ignore[arg-type]


def test_a_missing_config_is_written_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_MEASURE_S", 0.01)
    carve = Carve(num_labeled=6, val_fraction=0.2)
    pack(write_files(tmp_path / "images", class_files(8)), tmp_path / "out", carve=carve)
    with pytest.raises(UserError, match="does not exist") as caught:
        load_config(tmp_path / "birds.yaml")
    words = command_of(caught.value, DATA=str(tmp_path / "out"))
    assert words[-2:] == [">", "birds.yaml"]
    (tmp_path / "birds.yaml").write_text(type_in(*words[:-2]))
    assert load_config(tmp_path / "birds.yaml").data.root == tmp_path / "out"


def written(config: Config, folder: Path) -> Path:
    """The config as a file."""
    (folder / "c.yaml").write_text(dump_yaml(config))
    return folder / "c.yaml"


def forget_digests(stage: Path) -> None:
    """Make the stage one of an earlier version, of which the shape of a file alone tells that it is damaged."""
    record = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps({k: v for k, v in record.items() if k not in ("digests", "seal")}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.process
def test_labels_that_are_damaged_are_made_again_as_the_message_says(
    digits: Config, teacher: Path, labels: Path, tmp_path: Path
) -> None:
    unlabeled, config = open_split(digits.data, "unlabeled"), written(digits, tmp_path)
    type_in("label", config, "--teacher", teacher, "--out", tmp_path / "labels")
    path = tmp_path / "labels" / f"{unlabeled.shards[0].name}.arrow"
    spoil(path)
    with pytest.raises(UserError, match="delete this file and type the command that made it again"):
        LabelStore(tmp_path / "labels", unlabeled)
    path.unlink()
    type_in("label", config, "--teacher", teacher, "--out", tmp_path / "labels")
    assert path.read_bytes() == (labels / path.name).read_bytes()
    forget_digests(tmp_path / "labels")
    cut(path)
    with pytest.raises(UserError, match="delete this file and run `selftrain label` again"):
        LabelStore(tmp_path / "labels", unlabeled)
    path.unlink()
    type_in("label", config, "--teacher", teacher, "--out", tmp_path / "labels")
    assert path.read_bytes() == (labels / path.name).read_bytes()


@pytest.mark.process
def test_a_selection_that_is_damaged_is_made_again_as_the_message_says(
    digits: Config, labels: Path, tmp_path: Path
) -> None:
    unlabeled, config = open_split(digits.data, "unlabeled"), written(digits, tmp_path)
    out = tmp_path / "selection"
    type_in("select", config, "--labels", labels, "--out", out)
    whole = (out / "selection.arrow").read_bytes()
    spoil(out / "selection.arrow")
    with pytest.raises(UserError, match="delete this file and type the command that made it again"):
        open_selection(out, unlabeled)
    forget_digests(out)
    cut(out / "selection.arrow")
    with pytest.raises(UserError, match=f"delete {out} and run `selftrain select` again"):
        open_selection(out, unlabeled)
    shutil.rmtree(out)
    type_in("select", config, "--labels", labels, "--out", out)
    assert (out / "selection.arrow").read_bytes() == whole


@pytest.mark.process
def test_a_method_that_is_no_single_training_is_run_by_the_verb_that_the_message_names(
    digits: Config, tmp_path: Path
) -> None:
    short = {"teacher": changed(digits.teacher, steps=2, warmup_steps=0, evaluations=1)}
    words = ["train", written(changed(digits, method="uda", **short), tmp_path), "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert "which `selftrain run` trains; for a supervised training set method to noisy_student" in str(done.exception)
    said = type_in(*words, "--set", "method=noisy_student")
    assert "val accuracy" in " ".join(said.split())  # a long path wraps the line


def test_rows_that_are_absent_name_the_verb_that_writes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`selftrain ablate CONFIG --out DIR` writes DIR/rows\.jsonl"):
        read_rows(tmp_path / "rows.jsonl")
