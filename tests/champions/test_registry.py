"""A registry is a model for every verb, and its history says who, what, when and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.champions import run_with
from support.command import selftrain_here as selftrain
from support.fake_stages import with_section
from support.images import class_files, write_files
from support.saved import save_random

from pipeline.champions.history import read_history
from pipeline.champions.promotion import promote
from pipeline.cli import stages
from pipeline.config import Config, dump_yaml
from pipeline.errors import UserError
from pipeline.models import format as model_format
from pipeline.models.format import load_model, model_digest, read_info, read_state
from pipeline.runs.folder import absolute, check_run_folder
from pipeline.shards.dataset import open_split
from pipeline.stages.jobs import Job
from pipeline.stages.kinds import fingerprint_of

pytestmark = pytest.mark.usefixtures("same_threads")


class Begun(Exception):
    """A stage would run now."""


def test_the_history_says_who_what_when_and_why(models: list[Path], tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", models[0])
    registry = tmp_path / "champions/birds"
    text = selftrain("promote", run, "--to", registry, "--reason", "the first one")
    assert f"v1 ({run}) is champion" in text
    (line,) = (registry / "history.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["number"], entry["action"], entry["version"]) == (1, "promote", 1)
    assert (entry["reason"], entry["source"]) == ("the first one", str(run))
    assert "@" in entry["who"]
    assert entry["time"].endswith("+00:00")
    assert entry["model"] == model_digest(models[0])
    assert entry["figures"]["test"]["top1"] == 0.5
    assert entry["lineage"] == read_info(run).lineage
    champion = json.loads((registry / "champion.json").read_text())
    champion.pop("seal")
    assert champion == entry
    assert sorted(p.name for p in registry.iterdir()) == [
        "champion.json", "history.jsonl", "run.lock", "v1.json", "v1.safetensors",
    ]  # fmt: skip


def test_a_registry_is_a_model_for_evaluate_predict_export_and_promote(
    registry: Path, models: list[Path], tmp_path: Path
) -> None:
    images = write_files(tmp_path / "images", class_files(3))
    assert selftrain("evaluate", registry, images, "--json") == selftrain("evaluate", models[1], images, "--json")
    for model, out in ((registry, "a.csv"), (models[1], "b.csv")):
        selftrain("predict", model, images, "--out", tmp_path / out)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    selftrain("export", registry, "--out", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == models[1].read_bytes()
    selftrain("promote", registry, "--to", tmp_path / "production")
    assert model_digest(tmp_path / "production") == model_digest(registry) == model_digest(models[1])


def test_reads_of_test_by_a_champion_are_those_of_the_run_that_it_is_from(models: list[Path], tmp_path: Path) -> None:
    """Through another registry, too, and by an earlier version; a file that is in no run has nobody to tell."""
    images = write_files(tmp_path / "images", class_files(3))
    runs = [run_with(tmp_path / "runs" / model.stem, model) for model in models[:2]]
    first, second = tmp_path / "champions/first", tmp_path / "champions/second"
    for run in runs:
        promote(run, first)
        promote(first, second)
    promote(models[2], first)
    selftrain("evaluate", first, images)
    assert not list(tmp_path.rglob("test_reads.jsonl"))
    selftrain("evaluate", second, images, "--split", "val")
    assert not list(tmp_path.rglob("test_reads.jsonl"))
    selftrain("evaluate", second, images)
    selftrain("evaluate", first / "v1.safetensors", images)
    for run, version in zip(runs, (first / "v1.safetensors", second / "v2.safetensors"), strict=True):
        (line,) = (run / "test_reads.jsonl").read_text().splitlines()
        assert json.loads(line)["model"] == str(version)


def test_a_run_that_starts_from_a_registry_has_one_champion_throughout(digits: Config, registry: Path) -> None:
    config = absolute(with_section(digits, "teacher", start={"model": str(registry), "mode": "init"}))
    assert config.teacher.start is not None
    assert config.teacher.start.model == str(registry / "v2.safetensors")


def test_a_champion_labels_and_teaches_as_its_model_does(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages have equal fingerprints, and are told a version, which no promotion changes."""
    given: list[Job] = []

    def begun(job: Job, *_: object) -> None:
        given.append(job)
        raise Begun

    monkeypatch.setattr(stages, "_run", begun)
    config, registry = tmp_path / "digits.yaml", tmp_path / "digits"
    config.write_text(dump_yaml(digits))
    model = save_random(tmp_path / "m.safetensors", open_split(digits.data, "val").classes)
    promote(model, registry)
    for verb, option in (("label", "--teacher"), ("train", "--start")):
        for path in (model, registry):
            with pytest.raises(Begun):
                selftrain(verb, config, option, path, "--out", tmp_path / "out")
    labels, labels_by_champion, train, train_from_champion = (fingerprint_of(job) for job in given)
    assert (labels_by_champion, train_from_champion) == (labels, train)
    for job in given[1::2]:
        assert f'"{registry}/v1.safetensors"' in job.model_dump_json()
        assert f'"{registry}"' not in job.model_dump_json()


def test_the_champion_again_changes_nothing(registry: Path, models: list[Path]) -> None:
    before = {path.name: path.read_bytes() for path in registry.iterdir()}
    done = promote(models[1], registry)
    assert not done.changed
    assert str(done) == f"v2 ({models[1]}) stays champion: {models[1]} is the same model"
    assert not promote(registry, registry).changed
    assert {path.name: path.read_bytes() for path in registry.iterdir()} == before


def test_an_earlier_champion_that_is_promoted_again_is_not_stored_twice(registry: Path, models: list[Path]) -> None:
    done = promote(models[0], registry, "the better one after all")
    assert (done.champion["version"], done.champion["number"]) == (1, 3)
    assert not (registry / "v3.safetensors").exists()
    assert promote(None, registry, rollback=True).champion["version"] == 2


@given(st.lists(st.sampled_from([0, 1, 2, None]), max_size=12))
@settings(max_examples=25)
def test_the_history_only_grows_and_a_rollback_takes_the_last_promotion_back(
    models: list[Path], tmp_path_factory: pytest.TempPathFactory, changes: list[int | None]
) -> None:
    """None stands for a rollback. The champions are a stack, of which a second rollback in a row takes nothing."""
    registry = tmp_path_factory.mktemp("history") / "birds"
    standing: list[int] = []
    lines, is_back = b"", False
    for change in changes:
        if change is not None:
            promote(models[change], registry)
            if standing[-1:] != [change]:
                standing.append(change)
                is_back = False
        elif is_back:
            assert not promote(None, registry, rollback=True).changed
        elif len(standing) < 2:
            with pytest.raises(UserError, match="nothing to go back to; promote the model that you want"):
                promote(None, registry, rollback=True)
        else:
            assert promote(None, registry, rollback=True).changed
            standing.pop()
            is_back = True
        if standing:
            assert read_state(registry).keys() == read_state(models[standing[-1]]).keys()
            assert model_digest(registry) == model_digest(models[standing[-1]])
            before, lines = lines, (registry / "history.jsonl").read_bytes()
            assert lines.startswith(before)
            assert json.loads(lines.splitlines()[-1]) == read_history(registry)[-1]


def test_a_rollback_takes_no_model(registry: Path, models: list[Path]) -> None:
    with pytest.raises(UserError, match="leave MODEL and --if-better out"):
        selftrain("promote", models[0], "--to", registry, "--rollback")
    with pytest.raises(UserError, match="name a run, or pass --rollback"):
        selftrain("promote", "--to", registry)
    assert "v1 (" in selftrain("promote", "--to", registry, "--rollback", "--reason", "v2 sees no owls")
    assert read_history(registry)[-1]["reason"] == "v2 sees no owls"


def test_a_rollback_typed_twice_says_how_to_go_back_further(registry: Path, models: list[Path]) -> None:
    promote(models[2], registry)
    selftrain("promote", "--to", registry, "--rollback")
    said = selftrain("promote", "--to", registry, "--rollback")
    assert f"v2 ({models[1]}) stays champion: a rollback made it so, and no second one follows" in said
    assert f"to go back further, promote {registry}/v1.safetensors" in said
    assert promote(registry / "v1.safetensors", registry).champion["version"] == 1
    assert len(read_history(registry)) == 5


def test_a_damaged_champion_is_rolled_back_even_after_a_rollback(registry: Path, models: list[Path]) -> None:
    promote(models[2], registry)
    promote(None, registry, rollback=True)
    (registry / "v2.safetensors").unlink()
    assert promote(None, registry, rollback=True).champion["version"] == 1


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_folder_with_other_files_is_no_registry(models: list[Path], tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", models[0])
    with pytest.raises(UserError, match=r"run has files, such as config.yaml, but is no registry; choose another"):
        promote(models[0], run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(UserError, match=r"such as notes.txt"):
        promote(models[0], tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="is a file, and a registry is a folder"):
        promote(models[0], models[1])


def test_a_model_that_is_none_makes_no_registry(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model at"):
        promote(tmp_path / "nothing", tmp_path / "birds")
    assert not (tmp_path / "birds").exists()


def test_no_run_takes_the_folder_of_a_registry(registry: Path) -> None:
    with pytest.raises(UserError, match="is a registry of champions, not a run's; choose another --run-dir"):
        check_run_folder(registry)


def test_a_registry_can_be_copied_elsewhere(registry: Path, models: list[Path], tmp_path: Path) -> None:
    copied = shutil.copytree(registry, tmp_path / "copied")
    assert model_digest(copied) == model_digest(models[1])
    assert promote(None, copied, rollback=True).changed


def test_a_promotion_while_a_model_is_loaded_leaves_it_whole(
    registry: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are those of its description: `load_model` asks the registry once."""

    def promoted_meanwhile(path: Path) -> dict[str, torch.Tensor]:
        promote(models[2], registry)
        return read_state(path)

    monkeypatch.setattr(model_format, "read_state", promoted_meanwhile)
    model, _ = load_model(registry)
    expected = read_state(models[1])
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model_digest(registry) == model_digest(models[2])
