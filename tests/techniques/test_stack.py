"""The tricks of Bag of Tricks all in one step, which has the loss, the rate and the decay of each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.learners import learner_of
from support.processes import train_job
from support.saved import save_random

from pipeline.ablation.cells import plan_cells
from pipeline.config import Config, Distillation, Mixup, changed
from pipeline.models.format import load_model

TRICKS = ("warmup", "no-decay_vectors", "label_smoothing", "distillation", "mixup")


def log_softmax(z: np.ndarray) -> np.ndarray:
    return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)))


def test_a_step_by_all_tricks_has_the_loss_the_rate_and_the_decay_of_each(digits: Config, tmp_path: Path) -> None:
    own = digits.teacher
    model = save_random(tmp_path / "teacher.safetensors", tuple("0123456789"), seed=1, mean=own.mean, std=own.std)
    mixup, temperature = Mixup(alpha=0.2, probability=1.0), 4.0
    distillation = Distillation(model=str(model), temperature=temperature)
    own = changed(own, mixup=mixup, distillation=distillation, warmup_steps=10, label_smoothing=0.1)
    config = changed(digits, teacher=own, rounds=changed(digits.rounds, num_rounds=0))
    base, *_, last = (cell.config.teacher for cell in plan_cells(config, TRICKS, "stack"))
    assert base.optimizer.decay_vectors
    assert not last.optimizer.decay_vectors
    assert (base.mixup, base.distillation, base.warmup_steps, base.label_smoothing) == (None, None, 0, 0)

    learner: Any = learner_of(train_job(digits, tmp_path, training=last))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    learner.network.model.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    mixed: list[torch.Tensor] = []
    mix = learner.mixing

    def noting(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = mix(*given)
        mixed.append(found[1])
        return found

    learner.mixing = noting
    batch = learner.batches.slot(0, 0)
    loss, _ = learner._loss(batch)
    ((views, logits),), (targets,) = seen, mixed
    z = logits.detach().double().numpy()
    r = load_model(model)[0](views).detach().double().numpy()
    p = targets.double().numpy()
    assert p.min() == pytest.approx(0.01, rel=1e-4), "smoothed by 0.1 over 10 classes, before they were mixed"
    assert (np.sort(p, 1)[:, -2] > 0.02).any(), "some have two classes"
    hard = -(p * log_softmax(z)).sum(1)
    answers = np.exp(log_softmax(r / temperature))
    soft = temperature**2 * (answers * (log_softmax(r / temperature) - log_softmax(z / temperature))).sum(1)
    weighed = distillation.hard_weight * hard + distillation.weight * soft
    assert float(loss.detach()) == pytest.approx(weighed.mean(), rel=1e-4)

    rates = [learner.lr(step) for step in range(10)]
    np.testing.assert_allclose(np.diff(rates), rates[1] - rates[0], rtol=1e-6)
    assert rates[0] < rates[-1]
    decay = {
        id(parameter): group["weight_decay"]
        for group in learner.network.optimizer.param_groups
        for parameter in group["params"]
    }
    weights = dict(learner.network.model.named_parameters())
    assert {decay[id(weights[name])] for name in weights if weights[name].ndim > 1} == {last.optimizer.weight_decay}
    assert {decay[id(weights[name])] for name in weights if weights[name].ndim == 1} == {0}
