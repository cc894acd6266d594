"""Dead units: networks whose biases make a known share of their units dead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import run, train_job
from support.ranks import in_two, run_ranks
from torch import Tensor, nn

from pipeline.config import Config, changed
from pipeline.evaluate.dead_units import DeadUnits
from pipeline.evaluate.predictor import Predictor
from pipeline.models import build
from pipeline.models.format import read_state
from pipeline.stages.kinds import load_object
from pipeline.stages.ranks import Ranks
from pipeline.train import validation
from pipeline.train.learner import Learner
from pipeline.train.setup import Setup

HUGE = 1e6


def biased(layer: nn.Conv2d | nn.Linear, num_dead: int, huge: float = HUGE) -> nn.Module:
    """The layer with a huge bias: negative in the first `num_dead` units, positive in the others."""
    with torch.no_grad():
        layer.bias.fill_(huge)  # type: ignore[union-attr]
        layer.bias[:num_dead] = -huge  # type: ignore[index]
    return layer


def share(model: nn.Module, *batches: Tensor) -> float | None:
    with DeadUnits(model) as dead, torch.inference_mode():
        for images in batches:
            model(images)
    return dead.share(Ranks())


def test_a_huge_negative_bias_kills_exactly_those_units() -> None:
    convs = nn.Sequential(biased(nn.Conv2d(3, 8, 3), 3), nn.ReLU(), nn.Flatten())
    linear = nn.Sequential(biased(nn.Linear(8 * 36, 20), 5, HUGE**2), nn.ReLU(inplace=True), nn.Linear(20, 2))
    assert share(nn.Sequential(convs, linear), torch.randn(4, 3, 8, 8)) == pytest.approx((3 + 5) / (8 + 20))


def test_channels_of_a_linear_layer_on_maps_are_the_last_dimension() -> None:
    """As in ConvNeXt: images [B, H, W, C]."""
    assert share(nn.Sequential(biased(nn.Linear(3, 8), 2), nn.ReLU()), torch.randn(4, 5, 6, 3)) == pytest.approx(2 / 8)


def test_a_unit_that_is_alive_for_one_image_is_not_dead() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    nn.init.eye_(model[0].weight)  # type: ignore[arg-type]
    first, second = torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])
    assert share(model, first, first) == 0.5
    assert share(model, first, second) == 0


def test_an_activation_that_several_layers_share_counts_once_per_layer() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.act = (
                biased(nn.Linear(3, 4), 1),
                biased(nn.Linear(4, 6), 2, HUGE**2),
                nn.ReLU(),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.second(self.act(self.first(x))))

    assert share(Shared(), torch.randn(5, 3), torch.randn(5, 3)) == pytest.approx(3 / 10)


def test_the_share_of_a_real_network_is_what_its_maps_say() -> None:
    """Against every activation's values, kept and compared in numpy."""
    model = build("wide_resnet10_1", 10, model_args={"activation": "relu"}).eval()
    for block in model.blocks:  # type: ignore[union-attr]
        nn.init.normal_(block.norm2.bias, -3, 1)  # type: ignore[union-attr, arg-type]
    kept: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda m, i, output: kept.append(output.clone()))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    images = torch.randn(6, 3, 8, 8)
    model(images)
    for handle in handles:
        handle.remove()
    dead = [(values.detach().numpy() == 0).all((0, 2, 3)) for values in kept]
    expected = sum(d.sum() for d in dead) / sum(d.size for d in dead)
    assert expected > 0.05
    assert share(model, images[:4], images[4:]) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ trainings

EVALUATIONS = 3


def shares(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["dead_units"] for line in lines if "dead_units" in line]


@pytest.mark.process
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_evaluation_of_a_training_counts_and_no_weight_changes(digits: Config, tmp_path: Path, ranks: int) -> None:
    short = {"activation": "relu", "steps": 6, "warmup_steps": 0, "evaluations": EVALUATIONS}
    job = train_job(digits, tmp_path / "out", training=changed(digits.teacher, **short))
    counting = changed(job, evaluate=changed(job.evaluate, dead_units=True), out=tmp_path / "counting")
    if ranks == 1:
        run(counting)
        assert read_state(run(job)).keys() == read_state(counting.out).keys()
        assert (job.out / "model.safetensors").read_bytes() == (counting.out / "model.safetensors").read_bytes()
    else:
        counting = in_two(counting, tmp_path, "two")
        assert run_ranks(counting) == [0, 0]
    assert len(shares(counting.out)) == EVALUATIONS
    assert all(0 <= share < 1 for share in shares(counting.out))


def test_the_image_by_which_a_predictor_tries_a_network_is_none_of_val(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = train_job(digits, tmp_path / "out", training=changed(digits.teacher, activation="relu"))
    setup = Setup(changed(job, evaluate=changed(job.evaluate, dead_units=True)), Ranks(), {})
    learner: Learner = load_object(job.learner)(setup)
    made = []

    def unwatched(model: nn.Module, *args: Any, **how: Any) -> Predictor:
        made.append(model)
        assert not any(module._forward_hooks for module in model.modules())
        return Predictor(model, *args, **how)

    monkeypatch.setattr(validation, "Predictor", unwatched)
    assert validation.Validation(setup).evaluate(learner.networks)["dead_units"] >= 0
    assert made


def test_without_a_module_of_an_activation_nothing_is_counted() -> None:
    assert share(nn.Linear(2, 2), torch.zeros(1, 2)) is None
