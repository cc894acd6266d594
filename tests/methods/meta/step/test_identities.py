"""The step of Meta Pseudo Labels against the paper's mathematics: identities in expectation."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.toys import NUM_CLASSES, NUM_UNLABELED, flat, mlp, network, weights
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.config import Meta, Uda
from pipeline.methods.meta.step import Baseline, MetaBatch, inner, labeled_gradient, meta_step
from pipeline.methods.uda.learner import answer_batch
from pipeline.train.losses import mean_cross_entropy
from pipeline.train.network import Network

FEEDBACK_ONLY = Uda(labeled_weight=0.0, weight=0.0)
"""The teacher has no other loss."""


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


def all_labels() -> list[Tensor]:
    return [torch.tensor(labels) for labels in itertools.product(range(NUM_CLASSES), repeat=NUM_UNLABELED)]


def draws_for(logits: Tensor, labels: Tensor) -> Tensor:
    """Draws in the middle of what each label owns of [0, 1)."""
    probs = F.softmax(logits.detach(), -1)
    own = probs.gather(1, labels[:, None])[:, 0]
    return (probs.cumsum(-1) - probs).gather(1, labels[:, None])[:, 0] + own / 2


def probability(logits: Tensor, labels: Tensor) -> Tensor:
    return F.softmax(logits.detach(), -1).gather(1, labels[:, None]).prod()


def meta_gradient(teacher: Network, student: Network, batch: MetaBatch, eta: float) -> Tensor:
    """The gradient in the teacher's weights of the student's labeled loss after its expected step, by autograd through
    that step."""
    probs = F.softmax(teacher.raw_model(batch.strong), -1)
    names, parameters = zip(*student.raw_model.named_parameters(), strict=True)
    expected = (probs * -F.log_softmax(student.raw_model(batch.strong), -1)).sum(-1).mean()
    gradients = torch.autograd.grad(expected, parameters, create_graph=True)
    moved = {name: p - eta * g for name, p, g in zip(names, parameters, gradients, strict=True)}
    loss = F.cross_entropy(functional_call(student.raw_model, moved, (batch.labeled,)), batch.labels)
    return flat(torch.autograd.grad(loss, list(teacher.raw_model.parameters())))


def expected_feedback_gradient(
    teacher: Network,
    student: Network,
    batch: MetaBatch,
    eta: float,
    label_of_teacher: Callable[[Tensor, Tensor], Tensor] = lambda logits, sampled: sampled,
) -> Tensor:
    """E[h grad CE(y^, T)] over every labeling, with the pieces of the step. The labeled gradient is taken after the
    student's expected step, which makes the identity exact and not one of first order."""
    logits = teacher.raw_model(batch.strong)
    parameters = list(student.raw_model.parameters())

    def of_student(labels: Tensor) -> list[Tensor]:
        loss = mean_cross_entropy(student.raw_model(batch.strong), labels)
        return list(torch.autograd.grad(loss, parameters))

    mean = [torch.zeros_like(p) for p in parameters]
    for labels in all_labels():
        torch._foreach_add_(mean, of_student(labels), alpha=float(probability(logits, labels)))
    moved = network(copy.deepcopy(student.raw_model))
    with torch.no_grad():
        torch._foreach_sub_(list(moved.raw_model.parameters()), mean, alpha=eta)
    labeled = labeled_gradient(moved, batch)
    total = torch.zeros_like(weights(teacher))
    for labels in all_labels():
        h = eta * inner(labeled, of_student(labels))
        loss = h * mean_cross_entropy(logits, label_of_teacher(logits, labels))
        gradient = torch.autograd.grad(loss, list(teacher.raw_model.parameters()), retain_graph=True)
        total += probability(logits, labels) * flat(gradient)
    return total


# ------------------------------------------------------------------------------------------------------- the identities


def test_the_expected_feedback_is_the_gradient_through_the_students_step(
    teacher: Network, student: Network, batch: MetaBatch
) -> None:
    """Up to 1/U, because the feedback and the teacher's loss are both means over the unlabeled images."""
    exact = meta_gradient(teacher, student, batch, eta=0.3)
    estimate = expected_feedback_gradient(teacher, student, batch, eta=0.3)
    torch.testing.assert_close(NUM_UNLABELED * estimate, exact, rtol=1e-8, atol=1e-14)


def test_another_label_for_the_teacher_than_the_students_breaks_the_identity(
    teacher: Network, student: Network, batch: MetaBatch
) -> None:
    exact = meta_gradient(teacher, student, batch, eta=0.3)
    wrong = expected_feedback_gradient(teacher, student, batch, 0.3, lambda logits, sampled: logits.argmax(-1))
    assert cosine(wrong, exact) < 0.9


def test_the_step_teaches_where_soft_labels_of_its_own_would_teach_nothing(
    teacher: Network, student: Network, batch: MetaBatch
) -> None:
    """The published code's term has a gradient of exactly zero; the step's moves the teacher with no other loss."""
    logits = teacher.raw_model(batch.strong)
    published = -(F.softmax(logits.detach(), -1) * F.log_softmax(logits, -1)).sum(-1).mean()
    assert flat(torch.autograd.grad(published, list(teacher.raw_model.parameters()))).norm() < 1e-15
    before, baseline = weights(teacher), Baseline(0.99)
    baseline.value = torch.zeros(())
    rates = {"uda_weight": 0.0, "teacher_lr": 1.0, "student_lr": 0.1}
    meta_step(teacher, student, batch, Meta(), FEEDBACK_ONLY, baseline, **rates)
    assert (weights(teacher) - before).norm() > 1e-5


def update_of(
    labels: Tensor,
    batch: MetaBatch,
    meta: Meta,
    uda: Uda,
    eta: float,
    *,
    student_clip: float = 0.0,
    uda_weight: float = 0.0,
    smoothing: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """What the step changes in the teacher's weights when its draws give these labels, with a baseline of 0.3."""
    teacher = network(mlp(1), label_smoothing=smoothing[0])
    student = network(mlp(2), student_clip, label_smoothing=smoothing[1])
    baseline = Baseline(0.99)
    baseline.value = torch.tensor(0.3)
    before = weights(teacher)
    draws = draws_for(teacher.raw_model(batch.strong) / meta.label_temperature, labels)
    rates = {"uda_weight": uda_weight, "teacher_lr": 1.0, "student_lr": eta}
    meta_step(teacher, student, replace(batch, draws=draws), meta, uda, baseline, **rates)
    return weights(teacher) - before


def expected_update(batch: MetaBatch, meta: Meta, eta: float) -> Tensor:
    logits = mlp(1)(batch.strong) / meta.label_temperature
    updates = [
        probability(logits, labels) * update_of(labels, batch, meta, FEEDBACK_ONLY, eta) for labels in all_labels()
    ]
    return torch.stack(updates).sum(0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["exact", "cosine", "finite-difference"])
def test_every_update_of_the_teacher_is_the_papers(
    batch: MetaBatch, kind: str, temperature: float, clip_norm: float
) -> None:
    """Equations 4 and 12 by autograd alone, beside the teacher's own losses, for every labeling. The student moves by
    its clipped gradient; the feedback is of the gradient itself. Labels are smoothed for the student, and for the
    teacher where a person gave them."""
    meta, uda = Meta.model_validate({"feedback": kind, "label_temperature": temperature}), Uda(labeled_weight=0.7)
    for labels in all_labels():
        teacher, student, eta = mlp(1), mlp(2), 0.3
        loss = F.cross_entropy(student(batch.strong), labels, label_smoothing=0.2)
        unlabeled = torch.autograd.grad(loss, list(student.parameters()))
        before = F.cross_entropy(student(batch.labeled), batch.labels)
        norm = flat(unlabeled).norm()
        factor = clip_norm / (float(norm) + 1e-6) if clip_norm else 1.0  # as PyTorch clips
        assert not clip_norm or factor < 0.5
        with torch.no_grad():
            for parameter, gradient in zip(student.parameters(), unlabeled, strict=True):
                parameter -= eta * factor * gradient
        after = F.cross_entropy(student(batch.labeled), batch.labels)
        labeled = torch.autograd.grad(after, list(student.parameters()))
        h = {
            "exact": eta * flat(labeled) @ flat(unlabeled),
            "cosine": F.cosine_similarity(flat(labeled), flat(unlabeled), dim=0),
            "finite-difference": (before - after).detach(),
        }[kind]
        own = answer_batch(network(teacher, label_smoothing=0.3), batch, uda, uda_weight=2.0).loss
        score = F.cross_entropy(teacher(batch.strong) / temperature, labels)
        expected = -flat(torch.autograd.grad(own + (h - 0.3) * score, list(teacher.parameters())))
        update = update_of(labels, batch, meta, uda, eta, student_clip=clip_norm, uda_weight=2.0, smoothing=(0.3, 0.2))
        torch.testing.assert_close(update, expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_expected_update_by_finite_differences_descends_the_students_expected_loss(
    batch: MetaBatch, temperature: float
) -> None:
    """For any eta, and whatever the baseline: the gradient of E[CE_l(S')] in the teacher, by autograd through the
    probability of every labeling."""
    eta, teacher, losses = 0.3, mlp(1), []
    for labels in all_labels():
        student = mlp(2)
        gradients = torch.autograd.grad(F.cross_entropy(student(batch.strong), labels), list(student.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(student.parameters(), gradients, strict=True):
                parameter -= eta * gradient
            losses.append(F.cross_entropy(student(batch.labeled), batch.labels))
    probs = F.softmax(teacher(batch.strong) / temperature, -1)
    likelihoods = [probs.gather(1, labels[:, None])[:, 0].prod() for labels in all_labels()]
    expected_loss = (torch.stack(likelihoods) * torch.stack(losses)).sum()
    exact = flat(torch.autograd.grad(expected_loss, list(teacher.parameters())))
    meta = Meta(label_temperature=temperature, feedback="finite-difference")
    torch.testing.assert_close(-NUM_UNLABELED * expected_update(batch, meta, eta), exact, rtol=1e-8, atol=1e-12)


def test_the_expected_update_by_gradients_is_the_same_to_first_order(
    teacher: Network, student: Network, batch: MetaBatch
) -> None:
    errors = []
    for eta in (1e-2, 1e-3):
        update, exact = expected_update(batch, Meta(), eta), meta_gradient(teacher, student, batch, eta)
        errors.append(float((NUM_UNLABELED * update + exact).norm() / exact.norm()))
        assert cosine(update, -exact) > 0.999
    assert errors[1] < 0.2 * errors[0] < 0.02


def test_the_wrong_sign_climbs_where_the_right_one_descends(
    teacher: Network, student: Network, batch: MetaBatch
) -> None:
    exact = meta_gradient(teacher, student, batch, 1e-3)
    assert cosine(expected_update(batch, Meta(scale=-1.0), 1e-3), -exact) < -0.999
