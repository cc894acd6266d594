"""Knowledge distillation against the paper's formula in float64, finite differences, and a teacher in plain PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_stages import FakeStages, with_section
from support.processes import outputs, run, run_with_a_kill, train_job
from support.tiny_net import TinyNet
from torch.nn import functional as F

from pipeline.ablation.cells import plan_cells
from pipeline.config import Config, Distillation, Training, changed, parse, unread_keys
from pipeline.errors import UserError
from pipeline.models.format import ModelInfo, load_model, save_model
from pipeline.runs.loop import run_loop
from pipeline.selection.targets import sharpen
from pipeline.shards.dataset import open_split
from pipeline.shards.reader import Reader
from pipeline.stages.jobs import TrainJob
from pipeline.stages.kinds import kind_of, load_object
from pipeline.stages.ranks import Ranks
from pipeline.train.distillation import as_logits
from pipeline.train.learner import Learner
from pipeline.train.losses import distillation_loss
from pipeline.train.setup import Setup

NUM, CLASSES = 6, 5
RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = RANDOM.normal(0, 3, (NUM, CLASSES)), RANDOM.normal(0, 3, (NUM, CLASSES))


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def formula(z: np.ndarray, r: np.ndarray, t: float) -> np.ndarray:
    """T^2 l(softmax(r/T), softmax(z/T)) as it is printed (Bag of Tricks 5.3), in float64."""
    return np.asarray(-(t**2) * (softmax(r / t) * np.log(softmax(z / t))).sum(1))


# ------------------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_loss_is_the_papers_less_the_entropy_of_the_teacher(temperature: float) -> None:
    ours = distillation_loss(torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), temperature)
    entropy = formula(TEACHER, TEACHER, temperature)
    np.testing.assert_allclose(ours, formula(STUDENT, TEACHER, temperature) - entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_gradient_is_that_of_finite_differences_of_the_papers_loss(temperature: float) -> None:
    logits = torch.from_numpy(STUDENT).float().requires_grad_()
    distillation_loss(logits, torch.from_numpy(TEACHER), temperature).sum().backward()
    expected, step = np.zeros_like(STUDENT), 1e-5
    for place in np.ndindex(*STUDENT.shape):
        moved = np.zeros_like(STUDENT)
        moved[place] = step
        up, down = (formula(STUDENT + sign * moved, TEACHER, temperature).sum() for sign in (1, -1))
        expected[place] = (up - down) / (2 * step)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, expected, rtol=1e-3, atol=1e-4)


def test_the_factor_keeps_the_gradient_at_high_temperatures() -> None:
    """There it is (z - r) / C, of logits with mean 0 (Hinton 2015, equation 4); without T^2 it would be 10^-6 of it."""
    z, r = (torch.from_numpy(x - x.mean(1, keepdims=True)).float() for x in (STUDENT, TEACHER))
    z.requires_grad_()
    distillation_loss(z, r, 1000.0).sum().backward()
    torch.testing.assert_close(z.grad, (z.detach() - r) / CLASSES, rtol=0.02, atol=0.02)


def test_stored_probabilities_are_softened_as_the_targets_of_pseudo_labels_are() -> None:
    probabilities = softmax(TEACHER).astype(np.float32)
    probabilities[0] = [1, 0, 0, 0, 0]  # what an answer so sure is stored as
    softened = F.softmax(as_logits(torch.from_numpy(probabilities)) / 4.0, 1)
    np.testing.assert_allclose(softened[1:], sharpen(probabilities[1:], 4.0), rtol=1e-4)
    assert torch.isfinite(
        distillation_loss(torch.from_numpy(STUDENT), as_logits(torch.from_numpy(probabilities)), 4)
    ).all()


# --------------------------------------------------------------------------------------------------------- the teacher


def learner_of(job: TrainJob) -> Learner:
    learner: Learner = load_object(job.learner)(Setup(job, Ranks(), {}))
    for network in learner.networks.values():
        network.train_mode(0)
    return learner


def with_distillation(training: Training, **values: Any) -> Training:
    return changed(training, distillation=Distillation(**values))


def save_tiny(
    path: Path,
    net: TinyNet,
    classes: tuple[str, ...],
    mean: Sequence[float] = (0.5,) * 3,
    std: Sequence[float] = (0.5,) * 3,
) -> None:
    info = ModelInfo(
        schema=1,
        architecture="selftrain_tiny",
        model_args={},
        classes=classes,
        input_size=(3, 8, 8),
        mean=mean,
        std=std,
        metrics={},
        lineage={},
    )
    save_model(path, net.state_dict(), info)


def test_the_teacher_answers_to_the_students_view_as_it_was_trained(digits: Config, tmp_path: Path) -> None:
    """Of another normalization, at another size, of classes in another order and one more."""
    torch.manual_seed(3)
    classes = (*reversed(open_split(digits.data, "labeled").classes), "another")
    net, mean, std = TinyNet(len(classes)), (0.1, 0.2, 0.3), (0.5, 0.4, 0.6)
    save_tiny(tmp_path / "teacher.safetensors", net, classes, mean, std)
    training = changed(with_distillation(digits.teacher, model=str(tmp_path / "teacher.safetensors")), image_size=12)
    learner: Any = learner_of(train_job(digits, tmp_path, training=training))
    pixels = torch.rand(4, 3, 12, 12)
    ours, theirs = (
        (pixels - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None]
        for m, s in ((training.mean, training.std), (mean, std))
    )
    small = F.interpolate(theirs, (8, 8), mode="bilinear", antialias=True)
    expected = net(small)[:, :-1].flip(1)
    torch.testing.assert_close(learner.distiller.teacher.logits(ours), expected, rtol=1e-4, atol=1e-4)


def test_a_teacher_that_lacks_a_class_is_refused(digits: Config, tmp_path: Path) -> None:
    save_tiny(tmp_path / "small.safetensors", TinyNet(2), ("0", "1"))
    training = with_distillation(digits.teacher, model=str(tmp_path / "small.safetensors"))
    with pytest.raises(UserError, match=r"`distillation\.model`: .*small\.safetensors does not know class '2'"):
        learner_of(train_job(digits, tmp_path, training=training))
    with pytest.raises(UserError, match=r"`distillation\.model` names no model"):
        learner_of(train_job(digits, tmp_path, training=with_distillation(digits.teacher)))
    answers = with_distillation(changed(digits.teacher, unlabeled_ratio=1), source="labels")
    with pytest.raises(UserError, match=r"`distillation\.source` is labels, but this training has no selection"):
        learner_of(train_job(digits, tmp_path, training=answers))


def test_a_student_that_sees_images_less_a_mean_image_has_no_views_for_a_teacher(
    digits: Config, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "tiny.safetensors", TinyNet(10), open_split(digits.data, "labeled").classes)
    computed = {"mean": Training().mean, "preprocessing": "mean_image"}
    whole = changed(digits.teacher, **computed)
    training = with_distillation(whole, model=str(tmp_path / "tiny.safetensors"))
    with pytest.raises(UserError, match=r"do not both see images less numbers per channel.* preprocessing: mean_std"):
        learner_of(train_job(digits, tmp_path, training=training))


# ------------------------------------------------------------------------------------------------------------ the step


@pytest.mark.parametrize("source", ["model", "labels"])
def test_a_step_has_the_sum_of_both_losses(
    digits: Config, teacher: Path, selection: Path, tmp_path: Path, source: str
) -> None:
    """Recomputed from the student's logits; with label files, labeled images have the loss on labels alone."""
    student = changed(digits.student, dropout=0.0, stochastic_depth=0.0, targets="hard")
    values = {"model": str(teacher)} if source == "model" else {"source": "labels"}
    training = with_distillation(student, temperature=3.0, weight=0.7, hard_weight=0.2, **values)
    learner: Any = learner_of(train_job(digits, tmp_path, selection=selection, training=training))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    learner.network.model.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    batch = learner.batches.slot(0, 0)
    loss, measured = learner._loss(batch)
    ((views, logits),) = seen
    n, z = batch.num_labeled, logits.detach().double().numpy()
    plain: Any = learner_of(train_job(digits, tmp_path, selection=selection, training=student))
    targets = plain.batches.slot(0, 0).targets.numpy()
    smooth = np.eye(10)[batch.labels] * 0.9 + 0.01
    hard = -(np.concatenate([smooth, targets]) * np.log(softmax(z))).sum(1)
    if source == "model":
        r, first = load_model(teacher)[0](views).detach().double().numpy(), 0
    else:
        r, first = np.log(np.maximum(batch.targets.double().numpy(), 1e-38)), n
    soft = formula(z[first:], r, 3.0) - formula(r, r, 3.0)
    expected = np.concatenate([hard[:first], 0.2 * hard[first:] + 0.7 * soft])
    assert float(loss.detach()) == pytest.approx(expected.mean(), rel=1e-4)
    assert float(measured["distillation_loss"]) == pytest.approx(soft.mean(), rel=1e-4)
    assert float(measured["labeled_loss"]) == pytest.approx(hard[:n].mean(), rel=1e-4)


def test_a_distilled_student_is_nearer_to_its_teacher(digits: Config, teacher: Path, tmp_path: Path) -> None:
    """On images that neither has seen, by the divergence of answers, though it sees no label and the other does."""
    own = digits.teacher
    distilled = with_distillation(own, model=str(teacher), hard_weight=0.0)
    val = open_split(digits.data, "val")
    pixels = torch.from_numpy(Reader(val, 8, digits.data).read(np.arange(len(val)))) / 255
    views = ((pixels - torch.tensor(own.mean)) / torch.tensor(own.std)).permute(0, 3, 1, 2)

    def train(training: Training) -> torch.Tensor:
        learner: Any = learner_of(train_job(digits, tmp_path, training=training, seed=7))
        for step in range(own.steps):
            learner.update(step, [learner.batches.slot(step, 0)])
        return F.log_softmax(learner.network.ema.model(views), 1).detach()

    target = F.softmax(load_model(teacher)[0](views), 1).detach()
    apart, near = (float(F.kl_div(train(each), target, reduction="batchmean")) for each in (own, distilled))
    assert near < 0.7 * apart, (near, apart)


@pytest.mark.parametrize("source", ["model", "labels"])
def test_a_distilled_training_resumes_bit_exact_after_a_kill(
    digits: Config, teacher: Path, selection: Path, tmp_path: Path, source: str
) -> None:
    values = {"model": str(teacher)} if source == "model" else {"source": "labels"}
    training = with_distillation(digits.student, **values)
    whole = run(train_job(digits, tmp_path / "whole", selection=selection, training=training))
    cut = run_with_a_kill(train_job(digits, tmp_path / "cut", selection=selection, training=training), 15)
    assert outputs(cut) == outputs(whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["distillation_loss"] > 0


# ------------------------------------------------------------------------------------------------------ runs and config


def test_the_teacher_stands_in_fingerprints_as_its_digest(
    digits: Config, teacher: Path, student: Path, tmp_path: Path
) -> None:
    (tmp_path / "moved").symlink_to(teacher)

    def inputs(model: Path) -> Any:
        job = train_job(digits, tmp_path / "x", training=with_distillation(digits.teacher, model=str(model)))
        return kind_of(job).inputs(job)

    assert inputs(teacher) == inputs(tmp_path / "moved") != inputs(student)


def test_a_student_learns_from_the_teacher_of_its_round_and_its_control_from_none(
    digits: Config, tmp_path: Path
) -> None:
    stages = FakeStages(0.6, 0.7, 0.8)
    config = changed(digits, student=with_distillation(digits.student))
    result = run_loop(with_section(config, "rounds", num_rounds=2), tmp_path, run_stage=stages)
    trained = [str(tmp_path / entry["train_dir"]) for entry in result["rounds"]]
    assert [job.training.distillation.model for job in stages.of("train", "student")] == trained[:2]
    assert [job.training.distillation for job in stages.of("train", "control")] == [None]


def test_a_named_teacher_is_the_controls_too(digits: Config, teacher: Path, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.7)
    config = changed(digits, student=with_distillation(digits.student, model=str(teacher)))
    run_loop(config, tmp_path, run_stage=stages)
    jobs = [*stages.of("train", "student"), *stages.of("train", "control")]
    assert [job.training.distillation.model for job in jobs] == [str(teacher)] * 2


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"teacher": {"distillation": {}}}, r"teacher\.distillation names no model, and the round-0 teacher has no"),
        ({"student": {"distillation": {"weight": 0, "hard_weight": 0}}}, "weight and hard_weight are both 0"),
        ({"student": {"distillation": {"source": "labels", "model": "x"}}}, "model is x, but with source: labels"),
        ({"student": {"distillation": {"source": "labels"}, "mixup": {}}}, "label files say nothing of mixed images"),
        ({"student": {"distillation": {"source": "labels"}, "unlabeled_ratio": 0}}, "with unlabeled_ratio 0 no image"),
    ],
)
def test_what_cannot_be_distilled_is_an_error_that_names_the_key(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Config, raw, "c.yaml")


@pytest.mark.parametrize("method", ["uda", "fixmatch", "meta"])
def test_methods_without_pseudo_labels_say_that_they_do_not_read_it(method: str) -> None:
    raw = {"method": method, "student": {"distillation": {"model": "x"}}}
    assert [key for key in unread_keys(parse(Config, raw, "c.yaml")) if "distillation" in key] == [
        "student.distillation"
    ]


def test_an_ablation_of_a_run_with_rounds_switches_it_for_students_alone() -> None:
    config = parse(Config, {"rounds": {"num_rounds": 1}}, "c.yaml")
    without, with_it = (cell.config for cell in plan_cells(config, ["distillation"], "alone"))
    assert without.student.distillation is None
    assert with_it.student.distillation == Distillation()
    assert with_it.teacher.distillation is None
    with pytest.raises(UserError, match="distillation is not read"):
        plan_cells(changed(config, rounds=changed(config.rounds, num_rounds=0)), ["distillation"], "alone")
