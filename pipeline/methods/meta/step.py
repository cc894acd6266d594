"""Meta Pseudo Labels: a teacher that learns from what its student learns (Pham 2021).

For a teacher T, a student S, labeled images x_l with labels y_l, and unlabeled images x_u, one step is

    y^ ~ T(x_u)                                                     a label sampled for every unlabeled image
    S' = S - eta * grad CE(y^, S(x_u))                              the student's step (eq. 4)
    h  = eta * <grad CE(y_l, S'(x_l)), grad CE(y^, S(x_u))>         the feedback: the labeled loss falls by it (eq. 12)
    T' = T - eta_T * grad [CE(y_l, T(x_l)) + w UDA(x_u) + (h - b) CE(y^, T(x_u))]

In the term of h, T(x_u) is the distribution that the labels are drawn from, `meta.label_temperature` included. With
another distribution the expectation would depend on the baseline.

To first order, h is the student's labeled loss before its step minus that after it. Where the step helped, h > 0, and
the teacher makes its labels likelier. This is REINFORCE: the reward is the student's progress, and the baseline b is
the moving average of that.

In expectation and to first order, h times that gradient is the gradient of the student's labeled loss in T through the
student's step, divided by U, because both cross-entropies are means over the U unlabeled images, as in the published
code. That is one reason why the feedback's gradient is small beside the others; `meta.scale` is a factor on it.

Shapes: L labeled images, U unlabeled ones, C classes. Leading dimensions "..." are independent networks side by side,
whose losses add up. Only the two moons have such a dimension. Logits are float32, because Accelerate converts what
autocast computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Meta, Uda
from pipeline.methods.uda.learner import Answer, answer_batch
from pipeline.train.joint import JointBatch
from pipeline.train.losses import mean_cross_entropy
from pipeline.train.network import Network

BELOW_1 = 1 - 2.0**-24
"""The largest float32 below 1. Rounding could bring a draw of 32 bits to 1, which belongs to no class."""
_FP16_SCALE = 2.0**10
"""The scale of a loss whose fp16 gradients are taken without a scaler; without it small ones would vanish."""


@dataclass(frozen=True)
class MetaBatch(JointBatch):
    """The images, labels and draws of one step, on the device."""

    draws: Tensor
    """Uniform numbers in [0, 1) that choose the labels, float32 [..., U]."""
    stored: Tensor
    """The probabilities of a big teacher, float32 [U, C]; [U, 0] without one."""


class Baseline:
    """The moving average of the feedback. It begins at the first feedback, and each later one enters after its use."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.value: Tensor | None = None

    def advantage(self, h: Tensor) -> Tensor:
        """The feedback h [...] minus the average before it, which then moves on; 0 for the first feedback."""
        if self.value is None:
            self.value = h.clone()
        advantage = h - self.value
        self.value = self.value.lerp(h, 1 - self.decay)
        return advantage


def meta_step(
    teacher: Network,
    student: Network | None,
    batch: MetaBatch,
    meta: Meta,
    uda: Uda,
    baseline: Baseline,
    *,
    uda_weight: float,
    teacher_lr: float,
    student_lr: float,
) -> dict[str, Tensor]:
    """Take one step of teacher and student; returns the measurements, each [] on the device.

    An absent student, or one whose learning rate is 0, takes no step and gives no feedback.
    """
    answer = adjust(teacher, batch) if meta.teacher == "adjuster" else answer_batch(teacher, batch, uda, uda_weight)
    measured, loss = answer.measured, answer.loss
    if student is not None and student_lr > 0:
        labels_hat = sample_labels(answer.logits.detach(), batch.draws, meta.label_temperature)
        h, of_student = student_step(student, batch, labels_hat, meta, student_lr)
        if h is not None and teacher.accelerator.mixed_precision == "fp16":
            h, of_student = _without_overflow(h, of_student, baseline)
        measured |= of_student
        if h is not None:
            used = baseline.value if baseline.value is not None else h
            advantage = meta.scale * baseline.advantage(h)
            score = mean_cross_entropy(answer.logits / meta.label_temperature, labels_hat)
            loss = loss + (advantage * score).sum()
            measured |= {"feedback": h.mean(), "baseline": used.mean()}
            measured |= _gradients(answer, labels_hat, advantage, meta.label_temperature)
    teacher.accelerator.backward(loss)
    teacher.unscale()
    grad_norm = teacher.clip()
    if teacher.update(teacher_lr):
        measured["grad_norm"] = grad_norm
    return {"loss": loss.detach(), **measured}


# ---------------------------------------------------------------------------------------------------------- the teacher


def adjust(teacher: Network, batch: MetaBatch) -> Answer:
    """The stored probabilities of a big teacher, adjusted by a small network that learns by feedback alone (Reduced
    Meta Pseudo Labels: Pham 2021, appendix E)."""
    logits = teacher.model(batch.stored)
    nothing = logits.sum() * 0  # it has a graph, for the steps without feedback
    return Answer(logits, nothing, nothing.detach(), {})


def sample_labels(logits: Tensor, draws: Tensor, temperature: float = 1.0) -> Tensor:
    """Sample a class, int64 [..., U], from each row of logits [..., U, C]: the inverse of its distribution function.

    Draws [..., U] belong to images, not to ranks, so that any number of ranks samples the same labels.
    """
    distribution = F.softmax(logits / temperature, -1).cumsum(-1)
    return (distribution <= draws.unsqueeze(-1) * distribution[..., -1:]).sum(-1)


@torch.no_grad()
def _gradients(answer: Answer, labels_hat: Tensor, advantage: Tensor, temperature: float) -> dict[str, Tensor]:
    """The norms of both losses' gradients in an image's logits, which need no other backward pass. They are means over
    images, [], so that any number of ranks measures the same."""
    errors = F.softmax(answer.logits / temperature, -1) - F.one_hot(labels_hat, answer.logits.shape[-1])
    feedback = (advantage[..., None] * errors.norm(dim=-1) / temperature).abs()
    return {"feedback_gradient": feedback.mean(), "uda_gradient": answer.uda_gradient}


def _without_overflow(
    h: Tensor, measured: dict[str, Tensor], baseline: Baseline
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """If the probe overflowed in fp16, h is the baseline; it is None before there is one, which costs a host sync per
    step until then, so usually one per run."""
    finite = h.isfinite()
    if baseline.value is None:
        if bool(finite):
            return h, measured
        return None, {name: value for name, value in measured.items() if name != "cosine"}
    repaired = {name: value.where(finite, 0.0) if name == "cosine" else value for name, value in measured.items()}
    return h.where(finite, baseline.value), repaired


# ---------------------------------------------------------------------------------------------------------- the student


def student_step(
    student: Network, batch: MetaBatch, labels_hat: Tensor, meta: Meta, lr: float
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Update the student on the teacher's labels, int64 [..., U]; returns the feedback [...] and the measurements.

    The feedback is that of a plain gradient step of size `lr` (times the factors of the layers, if they have some),
    without momentum and weight decay. A finite difference
    instead compares the losses before and after the optimizer's own step. The feedback is None if it is off, or if fp16
    skipped the update. The student meets labeled images here only, and keeps nothing of them.
    """
    logits = student.model(batch.strong)
    loss = mean_cross_entropy(logits, labels_hat, student.settings.label_smoothing)
    student.accelerator.backward(loss.sum())
    before = None
    if meta.feedback == "finite-difference":  # after the forward pass, because that moves BatchNorm statistics
        student.average_statistics()
        before = labeled_loss(student, batch)
    student.unscale()
    unlabeled = _gradients_of(student) if meta.feedback in ("exact", "cosine") else []
    student.clip()
    updated = student.update(lr)
    agreement = (logits.argmax(-1) == labels_hat).float().mean()
    measured = {"student_loss": loss.detach().mean(), "student_agreement": agreement}
    if meta.feedback == "off" or not updated:
        return None, measured
    if before is not None:
        return before - labeled_loss(student, batch), measured
    labeled = labeled_gradient(student, batch)
    if (scales := student.lr_scales()) is not None:  # layers take steps of their own, so both get half of each factor
        labeled, unlabeled = ([g * s**0.5 for g, s in zip(of, scales, strict=True)] for of in (labeled, unlabeled))
    leading = logits.dim() - 2
    product = inner(labeled, unlabeled, leading)
    norms = inner(labeled, labeled, leading).sqrt() * inner(unlabeled, unlabeled, leading).sqrt()
    cosine = product / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    h = cosine if meta.feedback == "cosine" else lr * product
    return h, {**measured, "cosine": cosine.mean()}


def labeled_gradient(student: Network, batch: MetaBatch) -> list[Tensor]:
    """The gradient of the student's labeled loss, one tensor per trained parameter, averaged over ranks.

    It is never in `.grad`. BatchNorm uses the statistics of the batch, as the step did, and does not keep them. There
    is no dropout.
    """
    scale = _FP16_SCALE if student.accelerator.mixed_precision == "fp16" else 1.0
    with probing(student.raw_model):  # the gradient too, because it may compute activations again
        with student.accelerator.autocast():  # the forward of a compiled model has none
            logits = student.raw_model(batch.labeled)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = mean_cross_entropy(exact, batch.labels).sum() * scale
        gradients = list(torch.autograd.grad(loss, _trained(student), allow_unused=True, materialize_grads=True))
    student.ranks.average(gradients)
    return gradients if scale == 1 else [g / scale for g in gradients]


@torch.no_grad()
def labeled_loss(student: Network, batch: MetaBatch) -> Tensor:
    """The student's labeled loss [...], averaged over ranks, to take differences of.

    It is computed in float32, because bf16 cannot represent the differences, and in eval mode, because the statistics
    of a batch would differ more than the weights do.
    """
    student.raw_model.eval()
    with torch.autocast(batch.labeled.device.type, enabled=False):
        loss = mean_cross_entropy(_forward(student.raw_model)(batch.labeled), batch.labels)
    student.train_mode()
    student.ranks.average([loss])
    return loss


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, except for BatchNorms, which use the statistics of the batch and do not keep them."""
    modes = [(module, module.training) for module in model.modules()]
    norms = [
        m
        for m, training in modes
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and training and m.track_running_stats  # frozen ones stay
    ]
    model.eval()
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm in norms:
            norm.track_running_stats = True


def inner(a: Sequence[Tensor], b: Sequence[Tensor], leading: int = 0) -> Tensor:
    """The inner product over all tensors and all but their first `leading` dimensions: [...], the leading shape."""
    return torch.stack([(x * y).flatten(leading).sum(-1) for x, y in zip(a, b, strict=True)]).sum(0)


def _trained(network: Network) -> list[nn.Parameter]:
    return [p for p in network.raw_model.parameters() if p.requires_grad]


def _gradients_of(network: Network) -> list[Tensor]:
    """Copies of the gradients, because optimizers and clipping change `.grad` in place."""
    return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in _trained(network)]


def _forward(model: nn.Module) -> Any:
    """The forward of the model's class, without the autocast that Accelerate put around the instance's."""
    return partial(type(model).forward, model)
