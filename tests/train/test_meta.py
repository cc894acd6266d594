"""The step of Meta Pseudo Labels against the paper's mathematics, in float64."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.config import Meta, Training
from pipeline.models.adjuster import Adjuster
from pipeline.train import meta as step
from pipeline.train.ema import Ema
from pipeline.train.meta import Baseline, MetaBatch, inner, mean_cross_entropy, meta_step, sample_labels
from pipeline.train.network import Network
from pipeline.train.ranks import Ranks

NUM_CLASSES, NUM_UNLABELED, NUM_LABELED, SIZE = 3, 2, 4, 5
FEEDBACK_ONLY = Meta(uda_weight=0.0)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """First-order identities hold to 1e-8 in float64 only."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(SIZE, 6), nn.Tanh(), nn.Linear(6, NUM_CLASSES))


def network(model: nn.Module) -> Network:
    """A model under plain gradient descent: no momentum, no decay."""
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    training = Training(label_smoothing=0.0)
    return Network(accelerator, Ranks(), training, model, model, optimizer, Ema(model, 0.9))


@pytest.fixture
def teacher() -> Network:
    return network(mlp(1))


@pytest.fixture
def student() -> Network:
    return network(mlp(2))


@pytest.fixture
def batch() -> MetaBatch:
    torch.manual_seed(3)
    return MetaBatch(
        labeled=torch.randn(NUM_LABELED, SIZE),
        labels=torch.tensor([0, 1, 2, 1]),
        weak=torch.randn(NUM_UNLABELED, SIZE),
        strong=torch.randn(NUM_UNLABELED, SIZE),
        draws=torch.rand(NUM_UNLABELED),
        stored=torch.empty(NUM_UNLABELED, 0),
    )


def flat(tensors: Iterator[Tensor] | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def weights(network: Network) -> Tensor:
    return flat(list(network.raw_model.parameters())).clone()


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


# ------------------------------------------------------------------------------------------------------------ feedback


def feedback(kind: str, eta: float, batch: MetaBatch) -> float:
    meta = Meta.model_validate({"feedback": kind})
    h, _ = step.student_step(network(mlp(2)), batch, torch.tensor([0, 2]), meta, eta)
    assert h is not None
    return float(h)


def test_the_finite_difference_converges_to_the_exact_feedback(batch: MetaBatch) -> None:
    etas = (1e-1, 1e-2, 1e-3)
    errors = [abs(feedback("finite-difference", eta, batch) / feedback("exact", eta, batch) - 1) for eta in etas]
    assert errors[0] < 0.5
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.2 * errors[1]


def test_a_cosine_is_the_exact_feedback_without_its_scale(batch: MetaBatch) -> None:
    value = feedback("cosine", 1e-3, batch)
    assert -1 <= value <= 1
    assert value == pytest.approx(feedback("cosine", 1e-6, batch), rel=1e-2)
    assert value * feedback("exact", 1e-3, batch) > 0


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


def test_a_probe_that_overflowed_in_fp16_changes_neither_teacher_nor_baseline(
    teacher: Network, student: Network, batch: MetaBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    monkeypatch.setattr(step, "student_step", lambda *_: (torch.tensor(torch.inf), {}))
    before, baseline = weights(teacher), Baseline(0.99)
    baseline.value = torch.tensor(0.5)
    meta = Meta(labeled_weight=0.0)
    meta_step(teacher, student, batch, meta, baseline, uda_weight=0.0, teacher_lr=1.0, student_lr=0.1)
    assert torch.equal(weights(teacher), before)
    assert float(baseline.value) == 0.5


def test_a_waiting_student_gives_no_feedback_and_stays_as_it_is(
    teacher: Network, student: Network, batch: MetaBatch
) -> None:
    before, baseline = weights(student), Baseline(0.99)
    rates = {"uda_weight": 0.5, "teacher_lr": 0.1, "student_lr": 0.0}
    measured = meta_step(teacher, student, batch, Meta(), baseline, **rates)
    assert "feedback" not in measured
    assert baseline.value is None
    assert torch.equal(weights(student), before)


def test_off_is_uda_bit_for_bit(batch: MetaBatch) -> None:
    rates = {"uda_weight": 0.5, "teacher_lr": 0.1}
    off, alone = network(mlp(1)), network(mlp(1))
    for _ in range(3):
        meta_step(off, network(mlp(2)), batch, Meta(feedback="off"), Baseline(0.99), student_lr=0.1, **rates)
        meta_step(alone, None, batch, Meta(), Baseline(0.99), student_lr=0.0, **rates)
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


# ------------------------------------------------------------------------------------------------------------ its parts


def test_the_baseline_begins_at_the_first_feedback_and_is_updated_after_use() -> None:
    baseline = Baseline(0.9)
    assert float(baseline.advantage(torch.tensor(2.0))) == 0
    assert float(baseline.advantage(torch.tensor(3.0))) == 1
    assert float(baseline.value) == pytest.approx(2.1)  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1))
def test_labels_are_sampled_from_the_teachers_distribution(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, NUM_CLASSES, generator=generator)
    draws = (torch.arange(10_000) + 0.5) / 10_000
    labels = sample_labels(logits.expand(10_000, -1), draws)
    shares = torch.bincount(labels, minlength=NUM_CLASSES) / 10_000
    torch.testing.assert_close(shares.double(), F.softmax(logits, -1)[0], atol=2e-4, rtol=0)


def test_an_impossible_class_is_never_sampled() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for draw in (0.0, 0.5, 1 - 2.0**-24):
        assert sample_labels(logits.float(), torch.tensor([draw])).tolist() == [1]


def test_the_uda_threshold_is_applied_after_sharpening() -> None:
    logits = torch.log(torch.tensor([[0.55, 0.45], [0.95, 0.05]]))
    _, mask = step.uda_targets(logits, temperature=0.5, threshold=0.59)
    assert mask.tolist() == [1.0, 1.0]
    _, mask = step.uda_targets(logits, temperature=1.0, threshold=0.59)
    assert mask.tolist() == [0.0, 1.0]


def test_networks_side_by_side_take_the_steps_that_each_would_alone(batch: MetaBatch) -> None:
    """With a leading dimension, as in the two moons: every network has its own feedback."""

    class Mlps(nn.Module):
        def __init__(self, models: list[nn.Module]) -> None:
            super().__init__()
            of = [dict(m.named_parameters()) for m in models]
            stacked = {name: torch.stack([p[name].detach() for p in of]) for name in of[0]}
            self.w0, self.b0 = nn.Parameter(stacked["0.weight"]), nn.Parameter(stacked["0.bias"])
            self.w2, self.b2 = nn.Parameter(stacked["2.weight"]), nn.Parameter(stacked["2.bias"])

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(x @ self.w0.mT + self.b0[:, None])
            return hidden @ self.w2.mT + self.b2[:, None]

    def train(teacher: Network, student: Network, batch: MetaBatch) -> None:
        baseline = Baseline(0.9)
        for _ in range(3):
            meta_step(teacher, student, batch, Meta(), baseline, uda_weight=0.5, teacher_lr=0.3, student_lr=0.3)

    seeds, draws = (1, 2, 3), torch.rand(3, NUM_UNLABELED)
    together = network(Mlps([mlp(s) for s in seeds])), network(Mlps([mlp(s + 10) for s in seeds]))
    train(*together, replace(batch, draws=draws))
    for place, seed in enumerate(seeds):
        alone = network(mlp(seed)), network(mlp(seed + 10))
        train(*alone, replace(batch, draws=draws[place]))
        for one, all_ in zip(alone, together, strict=True):
            mine = list(all_.raw_model.parameters())
            theirs = list(one.raw_model.parameters())
            torch.testing.assert_close(flat([p[place] for p in mine]), flat(theirs), rtol=1e-9, atol=1e-12)


def test_an_adjuster_begins_with_the_big_teachers_distribution_and_learns() -> None:
    adjuster, stored = Adjuster(NUM_CLASSES, 8), torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    torch.testing.assert_close(F.softmax(adjuster(stored), -1), stored)
    teacher, student = network(adjuster), network(mlp(2))
    torch.manual_seed(3)
    images = torch.randn(NUM_LABELED, SIZE), torch.randn(NUM_UNLABELED, SIZE)
    batch = MetaBatch(images[0], torch.tensor([0, 1, 2, 1]), images[1], images[1], torch.tensor([0.1, 0.9]), stored)
    baseline = Baseline(0.9)
    baseline.value = torch.zeros(())
    meta = Meta(teacher="adjuster")
    meta_step(teacher, student, batch, meta, baseline, uda_weight=0.0, teacher_lr=1.0, student_lr=0.5)
    assert not torch.allclose(F.softmax(adjuster(stored), -1), stored)
