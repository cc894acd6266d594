"""The step of Meta Pseudo Labels against the paper's mathematics: identities in expectation."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.config import Meta
from pipeline.train import meta as step
from pipeline.train.meta import Baseline, MetaBatch, inner, mean_cross_entropy, meta_step
from pipeline.train.network import Network
from train.meta.toys import NUM_CLASSES, NUM_UNLABELED, flat, mlp, network, weights

FEEDBACK_ONLY = Meta(uda_weight=0.0)


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
    labeled = step.labeled_gradient(moved, batch)
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
    meta = Meta(labeled_weight=0.0)
    meta_step(teacher, student, batch, meta, baseline, uda_weight=0.0, teacher_lr=1.0, student_lr=0.1)
    assert (weights(teacher) - before).norm() > 1e-5


def expected_update(scale: float, eta: float, batch: MetaBatch) -> tuple[Tensor, Tensor]:
    """The whole step's expected change of the teacher's weights by feedback, and the exact meta-gradient."""
    teacher, student = network(mlp(1)), network(mlp(2))
    meta = FEEDBACK_ONLY.model_copy(update={"scale": scale})
    exact = meta_gradient(teacher, student, batch, eta)
    logits, before = teacher.raw_model(batch.strong), weights(teacher)

    def update(draws: Tensor, meta: Meta) -> Tensor:
        teacher, student, baseline = network(mlp(1)), network(mlp(2)), Baseline(0.99)
        baseline.value = torch.zeros(())
        rates = {"teacher_lr": 1.0, "student_lr": eta}
        meta_step(teacher, student, replace(batch, draws=draws), meta, baseline, uda_weight=0.0, **rates)
        return weights(teacher) - before

    supervised = update(batch.draws, meta.model_copy(update={"scale": 0.0}))
    total = torch.zeros_like(before)
    for labels in all_labels():
        change = update(draws_for(logits, labels), meta) - supervised
        total += probability(logits, labels) * change
    return total, exact


def test_the_whole_step_follows_the_meta_gradient_to_first_order(batch: MetaBatch) -> None:
    errors = []
    for eta in (1e-2, 1e-3):
        update, exact = expected_update(1.0, eta, batch)
        errors.append(float((NUM_UNLABELED * update + exact).norm() / exact.norm()))
        assert cosine(update, -exact) > 0.999
    assert errors[1] < 0.2 * errors[0] < 0.02


def test_the_wrong_sign_climbs_where_the_right_one_descends(batch: MetaBatch) -> None:
    update, exact = expected_update(-1.0, 1e-3, batch)
    assert cosine(update, -exact) < -0.999
