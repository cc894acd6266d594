"""The parts of a training against a few lines that say the same: schedule, losses, averages, optimizer, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.damage import attempt, put, rotten
from torch import nn

from pipeline.config import Optimizer, Training
from pipeline.errors import UserError
from pipeline.models import build, set_trainable
from pipeline.train.checkpoint import Checkpoints
from pipeline.train.ema import Ema
from pipeline.train.losses import combine, hard_cross_entropy, soft_cross_entropy
from pipeline.train.optimizer import make_optimizer
from pipeline.train.schedule import lr_at, peak_lr

# ------------------------------------------------------------------------------------------------------------ schedule


def rate(step: int, training: Training) -> float:
    """The learning rate of a training on a stream of its own."""
    return lr_at(step, training, steps=training.steps, num_images=training.peak_images)


def test_the_learning_rate_warms_up_linearly_and_falls_as_half_a_cosine() -> None:
    training = Training(steps=100, warmup_steps=10, batch_size=256, optimizer=Optimizer(lr=1.0))
    rates = [rate(step, training) for step in range(100)]
    assert rates[:10] == pytest.approx([(s + 1) / 11 for s in range(10)])
    assert rates[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * (s + 0.5) / 90)) for s in range(90)])
    assert max(rates) == rates[10]
    assert 0 < rates[-1] < 1e-3


@given(st.integers(1, 50), st.integers(0, 60))
def test_the_learning_rate_is_positive_and_at_most_the_peak(steps: int, warmup: int) -> None:
    training = Training(steps=steps, warmup_steps=warmup % steps)
    assert all(0 < rate(step, training) <= peak_lr(training, training.peak_images) for step in range(steps))


def test_the_peak_is_linear_in_the_images_that_the_loss_averages_over() -> None:
    values = {"batch_size": 64, "optimizer": Optimizer(lr=0.1, lr_batch_size=256)}

    def peak(**more: object) -> float:
        training = Training(**values, **more)
        return peak_lr(training, training.peak_images)

    assert peak() == pytest.approx(0.025)
    assert peak(unlabeled_ratio=7) == pytest.approx(0.2)
    assert peak(unlabeled_ratio=7, loss_normalization="labeled") == pytest.approx(0.025)


# -------------------------------------------------------------------------------------------------------------- losses

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def test_hard_cross_entropy_is_that_of_the_smoothed_one_hot() -> None:
    smooth = 0.9 * nn.functional.one_hot(LABELS, 5) + 0.1 / 5
    expected = -(smooth * LOGITS.log_softmax(1)).sum(1)
    torch.testing.assert_close(hard_cross_entropy(LOGITS, LABELS, 0.1), expected)


def test_soft_cross_entropy_is_the_expected_surprise_and_never_smoothed() -> None:
    targets = torch.softmax(LOGITS.flip(0), 1)
    expected = -torch.einsum("bc,bc->b", targets, LOGITS.softmax(1).log())
    torch.testing.assert_close(soft_cross_entropy(LOGITS, targets), expected)
    one_hot = nn.functional.one_hot(LABELS, 5).float()
    torch.testing.assert_close(soft_cross_entropy(LOGITS, one_hot), hard_cross_entropy(LOGITS, LABELS, 0.0))


def test_losses_are_fp32_under_bf16_logits() -> None:
    assert hard_cross_entropy(LOGITS.bfloat16(), LABELS, 0.1).dtype == torch.float32
    assert soft_cross_entropy(LOGITS.bfloat16(), LOGITS.softmax(1)).dtype == torch.float32


@pytest.mark.parametrize("ratio", [0, 1, 7])
def test_labeled_normalization_makes_gradients_one_plus_ratio_times_those_of_total(ratio: int) -> None:
    logits = torch.randn(4 * (1 + ratio), 5, generator=torch.Generator().manual_seed(1))
    targets = torch.softmax(torch.randn(4 * ratio, 5, generator=torch.Generator().manual_seed(2)), 1)

    def gradient(normalization: str) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        labeled = hard_cross_entropy(leaf[:4], LABELS[:4], 0.1)
        unlabeled = soft_cross_entropy(leaf[4:], targets)
        combine(labeled, unlabeled, normalization, num_labeled=4, num_total=len(leaf)).backward()  # type: ignore[arg-type]
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient("labeled"), gradient("total") * (1 + ratio))


def test_all_images_weigh_the_same() -> None:
    labeled, unlabeled = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0, 8.0, 0.0])
    assert combine(labeled, unlabeled, "total", num_labeled=2, num_total=6) == 16 / 6
    assert combine(labeled, unlabeled, "labeled", num_labeled=2, num_total=6) == 2.0 + 2 * 3.0


# ----------------------------------------------------------------------------------------------------------------- ema


def test_the_average_equals_a_plain_loop_with_warmed_up_decay() -> None:
    model = build("wide_resnet10_1", 10)
    ema = Ema(model, 0.6)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else 1)
        ema.update()
        decay = min(0.6, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor.clone()
    for name, tensor in ema.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_the_average_is_a_copy_in_eval_mode_without_gradients() -> None:
    model = build("wide_resnet10_1", 10)
    ema = Ema(model.train(), 0.9)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in ema.model.parameters()}


# ----------------------------------------------------------------------------------------------------------- optimizer


@pytest.mark.parametrize("name", ["sgd", "rmsproptf", "adamw", "lamb", "alexnet"])
def test_weight_decay_spares_biases_and_normalization(name: str) -> None:
    model = build("wide_resnet10_1", 10)
    optimizer = make_optimizer(model, Optimizer(name=name, weight_decay=0.3))  # type: ignore[arg-type]
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decays[id(p)] for p in model.parameters() if p.ndim > 1} == {0.3}
    assert {decays[id(p)] for p in model.parameters() if p.ndim == 1} == {0.0}
    assert len(decays) == len(list(model.parameters()))


def test_sgd_is_with_nesterov_momentum() -> None:
    optimizer = make_optimizer(build("wide_resnet10_1", 10), Optimizer(name="sgd", momentum=0.8))
    assert all(group["nesterov"] and group["momentum"] == 0.8 for group in optimizer.param_groups)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_parameter_groups_do_not_depend_on_the_weight_decay(weight_decay: float) -> None:
    model = build("wide_resnet10_1", 10)
    set_trainable(model, 1)
    groups = make_optimizer(model, Optimizer(weight_decay=weight_decay)).param_groups
    assert [{p.ndim > 1 for p in group["params"]} for group in groups] == [{False}, {True}]
    assert all(p.requires_grad for group in groups for p in group["params"])


def test_lamb_leaves_clipping_to_clip_norm() -> None:
    """Its step does not depend on the gradient's scale, unless a norm above 1 is clipped within."""
    weight = nn.Parameter(torch.ones(4, 4))
    model = nn.Module()
    model.weight = weight
    optimizer = make_optimizer(model, Optimizer(name="lamb", weight_decay=0.0, momentum=0.0))
    first = torch.arange(16.0).view(4, 4) + 1
    for scale in (1.0, 100.0):
        weight.grad = first * scale
        optimizer.step()
    # The second moment remembers the scales as they were: 0.999 * g^2 + (100 g)^2 in units of 0.001.
    (state,) = optimizer.state.values()
    torch.testing.assert_close(state["exp_avg_sq"], 0.001 * (0.999 + 10_000) * first**2)


def test_rmsprop_is_that_of_efficientnet() -> None:
    optimizer = make_optimizer(build("wide_resnet10_1", 10), Optimizer(name="rmsproptf"))
    assert {(group["alpha"], group["eps"], group["momentum"]) for group in optimizer.param_groups} == {(0.9, 1e-3, 0.9)}


# --------------------------------------------------------------------------------------------------------- checkpoints


def state(value: int) -> dict[str, object]:
    return {"model": {"w": torch.full((1000,), float(value))}, "sums": torch.zeros(2)}


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "f", keep=2)
    assert checkpoints.load_last() is None
    for step in (5, 10, 1000):
        checkpoints.save(step, state(step))
    checkpoints.save_best(5, state(5))
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["best.pt", "step-000000010.pt", "step-000001000.pt"]
    last = checkpoints.load_last()
    assert last is not None
    assert last["step"] == 1000
    assert float(last["model"]["w"][0]) == 1000
    assert checkpoints.load_best()["step"] == 5


@pytest.mark.parametrize("size", [0, 1, 500, -1])
def test_a_truncated_checkpoint_is_an_error_that_names_it(tmp_path: Path, size: int) -> None:
    path = Checkpoints(tmp_path, "f", 2).save(5, state(5))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"step-000000005\.pt is not a readable checkpoint.*delete it"):
        Checkpoints(tmp_path, "f", 2).load_last()


def test_a_flipped_byte_of_a_checkpoint_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """Torch itself loads most of these without a word."""
    checkpoints = Checkpoints(tmp_path, "f", 2)
    path, num_refused = checkpoints.save(5, state(5)), 0
    for damaged in rotten(path.read_bytes(), 300):
        put(path, damaged)
        found, refused = attempt(checkpoints.load_last)
        if refused:
            assert str(path) in refused
            assert "delete it to go on from the one before" in refused
            num_refused += 1
            continue
        assert found is not None
        assert torch.equal(found["model"]["w"], torch.full((1000,), 5.0))
        assert {**found, "model": 0, "sums": 0} == {"model": 0, "sums": 0, "step": 5, "fingerprint": "f"}
    assert num_refused > 150  # the rest is padding


def test_a_damaged_checkpoint_of_the_best_step_says_to_train_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "f", 2)
    checkpoints.save_best(5, state(5))
    path = tmp_path / "checkpoints" / "best.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"best\.pt is damaged.*delete {tmp_path} to train again"):
        checkpoints.load_best()


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "mine", 2).save(5, state(5))
    with pytest.raises(UserError, match="belongs to another training"):
        Checkpoints(tmp_path, "yours", 2).load_last()


def test_a_checkpoint_runs_no_code_when_read(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, "f", 2).save(5, state(5))
    torch.save({"fingerprint": "f", "code": Path}, path)
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        Checkpoints(tmp_path, "f", 2).load_last()
