"""A synthetic run folder, written with the real writers: real images, invented answers."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pipeline.config import Config, Data, Evaluate, Rounds, Select, Training, dump_yaml, semantic
from pipeline.evaluate.metrics import compute_metrics
from pipeline.files import read_json, write_json, write_sealed
from pipeline.labels.store import LabelRows, label_path, label_provenance, summarize, write_labels
from pipeline.models.format import ModelInfo
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.report.page import write_report
from pipeline.runs.ledger import Ledger
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.fingerprint import StageInputs, digest, fingerprint
from pipeline.stages.folder import finish_folder, open_folder
from pipeline.stages.jobs import LabelJob, Role, SelectJob
from pipeline.stages.kinds import KINDS
from pipeline.stages.preamble import run_stage
from support.images import digit_files, png, write_files

CLASSES = ("zero", "one", "two", "three", "<b>four", "five $x$", "six & 7", "seven", '"eight"', "nine")
SKILL = (1.3, 2.0, 2.5)
"""How much larger the true class's logit is, a round."""


EditJson = Callable[[dict], object]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def unfinished(unfinished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unfinished_run, tmp_path / "unfinished"))


def edit(path: Path, change: EditJson) -> None:
    """Change a JSON file as if the run had written it so."""
    value = read_json(path)
    change(value)
    write_json(path, value)
    record = path.parent / "stage.json"
    if path != record and record.exists():
        edit(record, lambda stage: stage.get("digests", {}).pop(path.name, None))


def text_of(run: Path, *, draw: bool = False) -> str:
    """The text of the page. Its plots are made, but not drawn unless asked for: that takes most of the time."""
    no_drawing = mock.patch.object(Figure, "savefig", lambda figure, file, **_: file.write(png(0)))
    with contextlib.nullcontext() if draw else no_drawing:
        page = write_report(run).read_text()
    return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", page)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Packed digits: 100 labeled, val, test and an unlabeled rest."""
    folder = tmp_path_factory.mktemp("digits")
    write_files(folder / "images", digit_files(classes=CLASSES))
    carve = Carve(num_labeled=100, val_fraction=0.2, test_fraction=0.2, seed=0)
    pack(folder / "images", folder / "packed", shard_size=400, carve=carve, workers=1)
    return Data(root=folder / "packed", cache_dir=folder / "cache")


@dataclass
class Author:
    """Writes a run folder, stage by stage."""

    path: Path
    config: Config

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.path.mkdir(parents=True)
        self.ledger = Ledger(self.path, "tests")
        (self.path / "config.yaml").write_text(dump_yaml(self.config))

    def logits(self, labels: np.ndarray, skill: float, seed: int = 1) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(size=(len(labels), len(CLASSES)))
        noise[np.arange(len(labels)), labels] += skill
        return (noise * 1.6).astype(np.float32)

    def open(self, folder: Path, kind: str, config: dict[str, Any], inputs: dict[str, str]) -> Path:
        version, read = KINDS[kind].version, StageInputs(config, inputs)
        path = folder / f"{kind}-{fingerprint(kind, version, read)[:8]}"
        open_folder(path, kind, version, read, {"machine": "test"})
        return path

    def train(self, folder: str, skill: float, role: Role, selection: Path | None = None, finish: bool = True) -> Path:
        inputs = {"selection": _fingerprint(selection)} if selection else {}
        config = {"training": semantic(self.config.student), "at": folder}
        path = self.open(self.path / folder, "train", config, inputs)
        self.ledger.add_model(path, role, int(folder.rpartition("/")[2]) if role != "control" else 1)
        steps = 2000 if finish else 900
        metrics, timing = [], []
        for step in range(20, steps + 1, 20):
            loss = 0.6 + 1.9 * np.exp(-step * skill / 900) + 0.08 * self.rng.normal()
            metrics.append({"step": step, "lr": 0.1, "loss": float(loss), "labeled_loss": 1.0, "grad_norm": 1.0})
            timing.append({"step": step, "seconds": float(0.9 + 0.1 * self.rng.random()), "images": 20 * 128})
            if step % 200 == 0:
                val = 0.97 * (1 - np.exp(-step * skill / 700)) - 0.2 / skill
                metrics.append({"step": step, "val_top1": float(val), "val_nll": 0.7})
        _lines(path / "metrics.jsonl", metrics)
        _lines(path / "timing.jsonl", timing)
        if finish:
            val = open_split(self.config.data, "val")
            self.answers(path, "evaluation-val.json", "predictions-val.npz", val, skill)
            info = ModelInfo(
                schema=1,
                architecture="resnet_tiny",
                model_args={},
                classes=val.classes,
                input_size=(3, 8, 8),
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                metrics={},
                lineage={},
            )
            write_json(path / "model.json", info.model_dump(mode="json", by_alias=True))
            finish_folder(path, ["evaluation-val.json", "predictions-val.npz"], model_sha256=digest(folder))
        return path

    def answers(
        self, folder: Path, figures: str | None, answers: str, dataset: Dataset, skill: float
    ) -> dict[str, Any]:
        log_probs = _log_softmax(self.logits(dataset.labels, skill))
        metrics = compute_metrics(log_probs, dataset.labels).to_json()
        if figures is not None:
            write_json(folder / figures, metrics)
        np.savez(
            folder / answers,
            label=dataset.labels,
            pred=log_probs.argmax(1).astype(np.int32),
            confidence=np.exp(log_probs.max(1)).astype(np.float32),
        )
        return metrics

    def label(self, round_: int, teacher: Path, skill: float) -> Path:
        model = json.loads((teacher / "stage.json").read_text())["outputs"]["model_sha256"]
        path = self.open(self.path / f"rounds/{round_}", "label", {}, {"teacher0": model})
        self.ledger.add(LabelJob.of(self.config, path, round_, []))
        dataset = open_split(self.config.data, "unlabeled")
        provenance = label_provenance(
            teachers=[model], view="center", precision="fp32", flip=False, batch_size=512, top_k=10, num_classes=10
        )
        truth = dataset.truth()
        assert truth is not None
        logits = torch.from_numpy(self.logits(truth, skill, seed=2))
        for shard in dataset.shards:
            rows = slice(shard.start, shard.start + shard.num_rows)
            fields = {name: tensor.numpy() for name, tensor in summarize(logits[rows], 10).items()}
            keys = [dataset.key(row) for row in range(rows.start, rows.stop)]
            labels = LabelRows(keys=keys, ids=dataset.ids[rows], **fields)
            write_labels(label_path(path, shard.name), labels, {**provenance, "shard": shard.sha256})
        _lines(path / "timing.jsonl", [{"step": 1, "seconds": 3.2, "images": len(dataset)}])
        names = [label_path(path, shard.name).name for shard in dataset.shards]
        finish_folder(path, names, provenance=provenance)
        return path

    def select(self, round_: int, labels: Path) -> Path:
        out = self.path / f"rounds/{round_}/select-{round_:08d}"
        job = SelectJob.of(self.config, out, round_, labels)
        self.ledger.add(job)
        run_stage(job)
        return out

    def entry(self, number: int, role: str, train: Path, label: Path | None = None, select: Path | None = None) -> Any:
        folders = {"train_dir": train, "label_dir": label, "select_dir": select}
        return {
            "round": number,
            "role": role,
            "model": "resnet_tiny",
            "val_top1": json.loads((train / "evaluation-val.json").read_text())["top1"],
            "num_selected": None,
            "kept": True,
            **{name: str(path.relative_to(self.path)) if path else None for name, path in folders.items()},
        }

    def evaluate(self, skills: dict[str, float]) -> dict[str, Any]:
        path = self.open(self.path, "evaluate", {}, {})
        test = open_split(self.config.data, "test")
        figures = {n: self.answers(path, None, f"predictions-{n}.npz", test, s) for n, s in skills.items()}
        write_json(path / "test.json", figures)
        finish_folder(path, ["test.json", *(f"predictions-{name}.npz" for name in skills)])
        return figures


def write_run(path: Path, data: Data, *, num_rounds: int = 2, finished: bool = True, control: bool = True) -> Path:
    """A run of `num_rounds` students; unfinished, its last student is under way."""
    config = Config(
        data=data,
        teacher=Training(image_size=8, model="resnet_tiny"),
        student=Training(image_size=8, model="resnet_tiny", unlabeled_ratio=4.0),
        select=Select(threshold=0.5, per_class=90),
        rounds=Rounds(num_rounds=num_rounds),
        evaluate=Evaluate(control=control),
    )
    author = Author(path, config)
    model = author.train("rounds/0", SKILL[0], "teacher")
    rounds = [author.entry(0, "teacher", model)]
    for number in range(1, num_rounds + 1):
        labels = author.label(number, model, SKILL[number - 1])
        selection = author.select(number, labels)
        done = finished or number < num_rounds
        model = author.train(f"rounds/{number}", SKILL[number], "student", selection, finish=done)
        if done:
            rounds.append(author.entry(number, "student", model, labels, selection))
    if finished:
        skills = {"teacher": SKILL[0], "final": SKILL[num_rounds], **({"control": 1.5} if control else {})}
        control_dir = str(author.train("control", 1.5, "control").relative_to(path)) if control else None
        final = {"round": num_rounds, "val_top1": rounds[-1]["val_top1"], "control_dir": control_dir}
        tests = author.evaluate(skills)
        top1 = {f"{name}_test_top1".removeprefix("final_"): figures["top1"] for name, figures in tests.items()}
        result = {"schema": 2, "rounds": rounds, "final": {**final, **top1, "test": tests}}
        write_sealed(path / "result.json", result)
    return path


@pytest.fixture(scope="session")
def finished_run(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two students and a control."""
    return write_run(tmp_path_factory.mktemp("runs") / "digits <i>demo</i>", digits)


@pytest.fixture(scope="session")
def unfinished_run(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second student is under way."""
    return write_run(tmp_path_factory.mktemp("runs") / "unfinished", digits, finished=False)


def _fingerprint(folder: Path) -> str:
    return str(json.loads((folder / "stage.json").read_text())["fingerprint"])


def _lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.log_softmax(torch.from_numpy(logits), 1).numpy()
