"""What the step is made of: baseline, sampling, threshold, networks side by side, the adjuster."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.toys import NUM_CLASSES, NUM_LABELED, NUM_UNLABELED, SIZE, flat, mlp, network
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Meta, Uda
from pipeline.methods.meta.adjuster import Adjuster
from pipeline.methods.meta.step import Baseline, MetaBatch, meta_step, sample_labels, student_step
from pipeline.methods.uda.learner import answer_batch, uda_targets, uda_weight_at
from pipeline.train.network import Network


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
    _, mask = uda_targets(logits, temperature=0.5, threshold=0.59)
    assert mask.tolist() == [1.0, 1.0]
    _, mask = uda_targets(logits, temperature=1.0, threshold=0.59)
    assert mask.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("joint_batch", [True, False])
def test_the_teachers_own_loss_is_the_one_written_down_by_hand(batch: MetaBatch, joint_batch: bool) -> None:
    """Smoothed labels on labeled images; on unlabeled ones the weak view's sharpened prediction is the strong view's
    target, without a gradient, and the mean is over all images, those below the threshold included."""
    model, smoothing = mlp(1), 0.2
    labeled, weak, strong = (F.log_softmax(model(x), -1) for x in (batch.labeled, batch.weak, batch.strong))
    targets = F.softmax(2 * weak.detach(), -1)
    sure = targets.amax(-1)
    threshold = float(sure.mean())
    assert (sure >= threshold).tolist() in ([True, False], [False, True])
    hot = F.one_hot(batch.labels, NUM_CLASSES) * (1 - smoothing) + smoothing / NUM_CLASSES
    supervised = -(hot * labeled).sum(-1).mean()
    consistency = sum(-(targets[i] * strong[i]).sum() for i in range(NUM_UNLABELED) if sure[i] >= threshold)
    loss = 0.7 * supervised + 3.0 * consistency / NUM_UNLABELED
    exact = flat(torch.autograd.grad(loss, list(model.parameters())))
    uda = Uda(labeled_weight=0.7, temperature=0.5, threshold=threshold, joint_batch=joint_batch)
    answer = answer_batch(network(model, label_smoothing=smoothing), batch, uda, uda_weight=3.0)
    torch.testing.assert_close(answer.loss, loss, rtol=1e-12, atol=0)
    found = flat(torch.autograd.grad(answer.loss, list(model.parameters())))
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(answer.logits, model(batch.strong))


@pytest.mark.parametrize("joint_batch", [True, False])
def test_a_joint_batch_shares_batchnorm_statistics(joint_batch: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZE, 6), nn.BatchNorm1d(6), nn.Linear(6, NUM_CLASSES)).train()
    labeled, weak, strong = torch.randn(4, SIZE), 2 + torch.randn(2, SIZE), 5 * torch.randn(2, SIZE)
    batch = MetaBatch(labeled, torch.tensor([0, 1, 2, 1]), weak, strong, torch.rand(2), torch.empty(2, 0))
    seen = torch.cat([labeled, strong, weak] if joint_batch else [labeled, strong])
    expected = copy.deepcopy(model)(seen)[4:6]
    answer = answer_batch(network(model), batch, Uda(joint_batch=joint_batch), uda_weight=1.0)
    torch.testing.assert_close(answer.logits, expected)


def test_the_weight_of_consistency_rises_linearly() -> None:
    uda = Uda(weight=8.0, ramp_steps=4)
    assert [uda_weight_at(n, uda) for n in range(6)] == [0.0, 2.0, 4.0, 6.0, 8.0, 8.0]
    assert uda_weight_at(0, Uda(weight=8.0, ramp_steps=0)) == 8.0


@pytest.mark.parametrize("kind", ["exact", "cosine"])
def test_networks_side_by_side_take_the_steps_that_each_would_alone(kind: str, batch: MetaBatch) -> None:
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
        meta, baseline = Meta.model_validate({"feedback": kind}), Baseline(0.9)
        rates = {"uda_weight": 0.5, "teacher_lr": 0.3, "student_lr": 0.3}
        for _ in range(3):
            meta_step(teacher, student, batch, meta, Uda(), baseline, **rates)

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


def test_the_order_of_images_does_not_matter_to_the_feedback(batch: MetaBatch) -> None:
    """Draws go with their images: that is what makes ranks exchangeable."""
    order, labels, teacher = torch.tensor([1, 0]), torch.tensor([2, 0, 1, 3]), mlp(1)
    other = replace(
        batch,
        labeled=batch.labeled[labels],
        labels=batch.labels[labels],
        strong=batch.strong[order],
        draws=batch.draws[order],
    )
    found = []
    for b in (batch, other):
        labels_hat = sample_labels(teacher(b.strong).detach(), b.draws)
        found.append(student_step(network(mlp(2)), b, labels_hat, Meta(), 0.1)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


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
    rates = {"uda_weight": 0.0, "teacher_lr": 1.0, "student_lr": 0.5}
    meta_step(teacher, student, batch, meta, Uda(), baseline, **rates)
    assert not torch.allclose(F.softmax(adjuster(stored), -1), stored)
