"""What must not change by accident: fingerprints of finished stages, config keys, and what the table of ops computes.

`python tests/golden/test_frozen.py` stores what is found. A new technique, method or architecture adds lines and
changes none; whatever changes a line says why in its commit and in the CHANGELOG.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.encoders import embed_job, probe_job

from pipeline.config import Config, Finetune, Section, Training, WeakView, changed, load_config, parse
from pipeline.config.base import is_operational
from pipeline.methods import METHODS
from pipeline.methods.round import Round
from pipeline.runs.finetune import finetuning
from pipeline.stages.fingerprint import StageInputs, fingerprint
from pipeline.stages.jobs import EvaluateJob, LabelJob, SelectJob, TrainJob
from pipeline.stages.kinds import KINDS, kind_of
from pipeline.views.ops import TABLE, levels_at

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
NOWHERE = Path("nowhere")
MACHINE = {"precision": "fp32", "device": "cpu"}
ROUND = Round(1, "student", "net", 0.5, (0.4, 0.6), None, True, NOWHERE, None, None)


# ------------------------------------------------------------------------------------------------------- fingerprints


def train_job(config: Config, role: str) -> TrainJob:
    """The job of a teacher, a student, or what the method trains in place of rounds."""
    method = METHODS[config.method]
    if method.reads("select"):
        section = config.teacher if role == "teacher" else config.student
        return TrainJob.of(config, NOWHERE, role, int(role != "teacher"), section)  # type: ignore[arg-type]
    whose = {"method": method.name, "learner": method.learner, "settings": method.settings(config)}
    return TrainJob.of(config, NOWHERE, "student", 1, config.student, **whose)


def fingerprints() -> dict[str, str]:
    """Name -> fingerprint, of stages on invented data."""
    configs = {path.stem: load_config(path) for path in CONFIGS.glob("*.yaml") if path.stem != "two_moons"}
    found = {}
    for name, config in {"default": Config(), **configs}.items():
        resolved = changed(config, runtime=changed(config.runtime, **MACHINE))
        if resolved.teacher.probe is not None:
            found[f"{name} embed"] = _fingerprint(embed_job(resolved, NOWHERE, resolved.teacher))
            found[f"{name} probe"] = _fingerprint(probe_job(resolved, NOWHERE, resolved.teacher, NOWHERE))
        for role in ("teacher", "student") if METHODS[config.method].reads("select") else ("student",):
            found[f"{name} train {role}"] = _fingerprint(train_job(resolved, role))
        if METHODS[config.method].reads("label"):
            found[f"{name} label"] = _fingerprint(LabelJob.of(resolved, NOWHERE, 1, []))
        if METHODS[config.method].reads("select"):
            found[f"{name} select"] = _fingerprint(SelectJob.of(resolved, NOWHERE, 1, NOWHERE))
        found[f"{name} evaluate"] = _fingerprint(EvaluateJob.of(resolved, NOWHERE, "test", {"final": NOWHERE}))
        control = METHODS[config.method].control(resolved, [], ROUND)
        found[f"{name} control"] = _fingerprint(TrainJob.of(resolved, NOWHERE, "control", 1, control))
    reduced = parse(Config, {"method": "meta", "meta": {"teacher": "adjuster"}, "runtime": MACHINE}, "golden")
    found["adjuster"] = _fingerprint(changed(train_job(reduced, "student"), labels=NOWHERE))
    tuned = finetuning(Finetune(image_size=48, steps=9, batch_size=8), NOWHERE, Training(weak=WeakView(flip=True)))
    found["finetune"] = _fingerprint(TrainJob.of(reduced, NOWHERE, "finetune", 2, tuned))
    return found


def _fingerprint(job: Any) -> str:
    kind = kind_of(job)
    return fingerprint(job.kind, kind.version, kind.inputs(job))


@pytest.fixture
def invented_data(monkeypatch: pytest.MonkeyPatch) -> None:
    invent(monkeypatch.setattr)


def invent(setattr: Callable[..., object]) -> None:
    """Splits and finished stages whose fingerprints are their names."""
    model = SimpleNamespace(architecture="resnet9", model_args={}, mean=(0.5,) * 3, std=(0.2,) * 3)
    model.crop_pct, model.crop, model.interpolation = 1.0, "center", "bicubic"
    model.preprocessing = "given"
    setattr("pipeline.runs.finetune.read_info", lambda path: model)
    for module in ("evaluate.stage", "models.weights"):
        setattr(f"pipeline.{module}.model_digest", lambda path: "model")
    stages = ("train.stage", "labels.stage", "selection.stage", "evaluate.stage", "features.stage", "probe.stage")
    for module in stages:
        setattr(f"pipeline.{module}.open_split", lambda data, split: SimpleNamespace(fingerprint=split))
    for module in ("train.stage", "selection.stage"):
        setattr(f"pipeline.{module}.stage_record", lambda path: {"fingerprint": "stage"})
    setattr("pipeline.probe.stage.stage_record", lambda path: {"outputs": {"provenance": {}}})


@pytest.mark.usefixtures("invented_data")
def test_no_fingerprint_of_a_finished_stage_changes() -> None:
    stored = json.loads((HERE / "fingerprints.json").read_text())
    found = fingerprints()
    assert {name: found.get(name) for name in stored} == stored
    assert found.keys() == stored.keys(), "a new recipe: store its fingerprints with python tests/golden/test_frozen.py"


def test_a_technique_that_is_off_changes_no_fingerprint() -> None:
    class Before(Section):
        steps: int = 1

    class After(Before):
        from pipeline.config.base import technique

        trick: int | None = technique(None)
        strength: float = technique(0.0, off=0.0)

    from pipeline.config import semantic

    def digest(section: Section) -> str:
        return fingerprint("train", 1, StageInputs(semantic(section), {}))

    assert digest(Before()) == digest(After())
    assert digest(After(trick=3)) != digest(After())
    assert digest(After(strength=0.5)) != digest(After())


# -------------------------------------------------------------------------------------------------------- config keys


def keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Every key of a section, and whether it is operational."""
    for name, field in section.model_fields.items():
        below = section.known_keys()[name]
        if below is not None:
            yield from keys(below, f"{prefix}{name}.")
        if below is None or field.default is None:
            yield f"{prefix}{name}{' (operational)' if is_operational(field) else ''}"


def test_the_set_of_config_keys_is_what_was_agreed_on() -> None:
    """A new key is a promise: add it to tests/golden/keys.txt on purpose."""
    stored = (HERE / "keys.txt").read_text().splitlines()
    assert sorted(keys(Config)) == stored


# ------------------------------------------------------------------------------------------------------ table of ops


def digest_of_ops() -> str:
    """What every operation makes of fixed images, at several magnitudes and both signs."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8))
    state = hashlib.blake2b(digest_size=16)
    for op in TABLE:
        for magnitude in (2, 9, 27):
            levels = levels_at(magnitude, 16)
            for sign in (-1, 1):
                values = torch.zeros(2, 6)
                given = op.values(levels, 16, sign)
                values[:, : len(given)] = torch.tensor(given)
                state.update(op.name.encode() + op.kernel(images, values, levels).numpy().tobytes())
    return state.hexdigest()


def test_what_the_ops_compute_goes_with_the_version_of_the_train_stage() -> None:
    """Whoever changes an op, or their order, raises the version of `train`: equal fingerprints mean equal images."""
    stored = json.loads((HERE / "ops.json").read_text())
    found = {"digest": digest_of_ops(), "train": KINDS["train"].version}
    assert found == stored, "raise the version of `train` in stages/kinds.py, then store both"


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    invent(patch.setattr)
    (HERE / "fingerprints.json").write_text(json.dumps(fingerprints(), indent=1, sort_keys=True) + "\n")
    (HERE / "keys.txt").write_text("\n".join(sorted(keys(Config))) + "\n")
    ops = {"digest": digest_of_ops(), "train": KINDS["train"].version}
    (HERE / "ops.json").write_text(json.dumps(ops, indent=1) + "\n")
    print("stored", file=sys.stderr)
