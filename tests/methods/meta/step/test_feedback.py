"""The student's step and its feedback: its kinds, what it leaves as it was, and where there is none."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from support.toys import NUM_CLASSES, SIZE, flat, mlp, network, weights
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Meta, Uda
from pipeline.methods.meta import step
from pipeline.methods.meta.step import Baseline, MetaBatch, meta_step
from pipeline.train.network import Network


def feedback(kind: str, eta: float, batch: MetaBatch) -> float:
    meta = Meta.model_validate({"feedback": kind})
    h, _ = step.student_step(network(mlp(2)), batch, torch.tensor([0, 2]), meta, eta)
    assert h is not None
    return float(h)


def test_the_finite_difference_of_a_plain_gradient_step_converges_to_the_exact_feedback(batch: MetaBatch) -> None:
    etas = (1e-1, 1e-2, 1e-3)
    errors = [abs(feedback("finite-difference", eta, batch) / feedback("exact", eta, batch) - 1) for eta in etas]
    assert errors[0] < 0.5
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.2 * errors[1]


def test_layers_with_rates_of_their_own_give_the_feedback_of_their_step(batch: MetaBatch) -> None:
    """Its finite difference is that of the optimizer's own step, whose groups have a factor each."""

    def measured(kind: str) -> float:
        student = network(mlp(2))
        first, _, last = student.raw_model.children()
        groups = [{"params": [*first.parameters()], "lr_scale": 0.1}, {"params": [*last.parameters()], "lr_scale": 3.0}]
        student.optimizer = student.accelerator.prepare_optimizer(torch.optim.SGD(groups, lr=0.1))
        h, _ = step.student_step(student, batch, torch.tensor([0, 2]), Meta.model_validate({"feedback": kind}), 1e-4)
        assert h is not None
        return float(h)

    assert measured("finite-difference") == pytest.approx(measured("exact"), rel=1e-3)
    assert measured("exact") != pytest.approx(feedback("exact", 1e-4, batch), rel=0.2)


def test_a_learning_rate_of_zero_gives_no_feedback(batch: MetaBatch) -> None:
    assert feedback("exact", 0.0, batch) == 0
    assert feedback("finite-difference", 0.0, batch) == 0


def test_a_finite_difference_does_not_see_batchnorm_statistics_move() -> None:
    """Both losses are taken under the same ones, although the student's forward pass between them changes them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).train()
    labeled, strong = torch.randn(6, 3, 4, 4), 3 + torch.randn(6, 3, 4, 4)
    batch = MetaBatch(labeled, torch.tensor([0, 1, 2, 0, 1, 2]), strong, strong, torch.rand(6), torch.empty(6, 0))
    meta = Meta(feedback="finite-difference")
    h, _ = step.student_step(network(model), batch, torch.tensor([0, 2, 1, 1, 0, 2]), meta, 0.0)
    assert h == 0


def test_a_finite_difference_takes_both_losses_under_statistics_of_all_ranks(
    student: Network, batch: MetaBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(Network, "average_statistics", lambda _: order.append("average"))
    monkeypatch.setattr(step, "labeled_loss", lambda *_: order.append("loss") or torch.zeros(()))
    step.student_step(student, batch, torch.tensor([0, 2]), Meta(feedback="finite-difference"), 0.1)
    assert order == ["average", "loss", "average", "loss"]


@pytest.mark.parametrize("kind", ["exact", "cosine", "finite-difference"])
def test_an_update_that_fp16_skipped_gives_no_feedback(
    kind: str, teacher: Network, student: Network, batch: MetaBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda _: True))
    meta, baseline = Meta.model_validate({"feedback": kind}), Baseline(0.99)
    rates = {"uda_weight": 0.5, "teacher_lr": 0.1, "student_lr": 0.1}
    measured = meta_step(teacher, student, batch, meta, Uda(), baseline, **rates)
    assert "feedback" not in measured
    assert baseline.value is None


@pytest.mark.parametrize("baseline_before", [None, 0.5])
def test_a_probe_that_overflowed_in_fp16_changes_neither_teacher_nor_baseline(
    teacher: Network,
    student: Network,
    batch: MetaBatch,
    monkeypatch: pytest.MonkeyPatch,
    baseline_before: float | None,
) -> None:
    """And nothing that is logged is infinite, which would end the run."""

    def overflowing(*_: object) -> list[Tensor]:
        return [torch.full_like(p, torch.inf) for p in student.raw_model.parameters()]

    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    monkeypatch.setattr(step, "labeled_gradient", overflowing)
    before, baseline = weights(teacher), Baseline(0.99)
    baseline.value = None if baseline_before is None else torch.tensor(baseline_before)
    rates = {"uda_weight": 0.0, "teacher_lr": 1.0, "student_lr": 0.1}
    measured = meta_step(teacher, student, batch, Meta(), Uda(labeled_weight=0.0), baseline, **rates)
    assert torch.equal(weights(teacher), before)
    assert (baseline.value if baseline.value is None else float(baseline.value)) == baseline_before
    assert all(value.isfinite() for value in measured.values())


def test_a_waiting_student_gives_no_feedback_and_stays_as_it_is(
    teacher: Network, student: Network, batch: MetaBatch
) -> None:
    before, baseline = weights(student), Baseline(0.99)
    rates = {"uda_weight": 0.5, "teacher_lr": 0.1, "student_lr": 0.0}
    measured = meta_step(teacher, student, batch, Meta(), Uda(), baseline, **rates)
    assert "feedback" not in measured
    assert baseline.value is None
    assert torch.equal(weights(student), before)


def test_off_is_uda_bit_for_bit(batch: MetaBatch) -> None:
    rates = {"uda_weight": 0.5, "teacher_lr": 0.1}
    off, alone = network(mlp(1)), network(mlp(1))
    for _ in range(3):
        meta_step(off, network(mlp(2)), batch, Meta(feedback="off"), Uda(), Baseline(0.99), student_lr=0.1, **rates)
        meta_step(alone, None, batch, Meta(), Uda(), Baseline(0.99), student_lr=0.0, **rates)
    assert torch.equal(weights(off), weights(alone))


@pytest.mark.parametrize("kind", ["exact", "cosine", "finite-difference"])
def test_the_student_never_receives_a_labeled_gradient(kind: str, batch: MetaBatch) -> None:
    """Its weights do not depend on labeled images or their labels, and nothing of the probe stays behind."""
    meta, after = Meta.model_validate({"feedback": kind, "scale": 0.0}), []
    for labels in (batch.labels, (batch.labels + 1) % NUM_CLASSES):
        student = network(mlp(2))
        step.student_step(student, replace(batch, labels=labels), torch.tensor([0, 2]), meta, 0.3)
        assert all(p.grad is None for p in student.raw_model.parameters())
        after.append(weights(student))
    assert torch.equal(*after)


def test_the_probe_leaves_batchnorm_and_dropout_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3))
    student = network(model.train())
    images, nothing = torch.randn(6, 3, 4, 4), torch.empty(0)
    batch = MetaBatch(images, torch.tensor([0, 1, 2, 0, 1, 2]), nothing, nothing, nothing, nothing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (flat(step.labeled_gradient(student, batch)) for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    step.labeled_loss(student, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_the_probe_normalizes_by_the_statistics_of_the_labeled_batch() -> None:
    """As the student's own step does: in eval mode the gradient would be another one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).train()
    images, nothing, labels = torch.randn(6, 3, 4, 4), torch.empty(0), torch.tensor([0, 1, 2, 0, 1, 2])
    batch = MetaBatch(images, labels, nothing, nothing, nothing, nothing)
    by_mode = []
    for copied in (copy.deepcopy(model), copy.deepcopy(model).eval()):
        loss = F.cross_entropy(copied(images), labels)
        by_mode.append(flat(torch.autograd.grad(loss, list(copied.parameters()))))
    found = flat(step.labeled_gradient(network(model), batch))
    torch.testing.assert_close(found, by_mode[0])
    assert (found - by_mode[1]).norm() > 0.01 * found.norm()


def test_the_probe_autocasts_where_nothing_has_patched_the_models_forward(batch: MetaBatch) -> None:
    """A compiled model: Accelerate patches the compiled one, and the probe calls the other."""
    torch.set_default_dtype(torch.float32)
    seen: list[bool] = []

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.unused = nn.Linear(SIZE, NUM_CLASSES), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            out: Tensor = self.layer(x)
            return out

    student = network(Plain())
    AcceleratorState._reset_state(True)
    student = replace(student, accelerator=Accelerator(cpu=True, mixed_precision="bf16"))
    gradients = step.labeled_gradient(student, replace(batch, labeled=batch.labeled.float()))
    AcceleratorState._reset_state(True)
    assert seen == [True]
    assert all(g.dtype == torch.float32 for g in gradients)
    assert float(gradients[2].norm()) == 0  # what the forward pass does not use has a gradient of 0
