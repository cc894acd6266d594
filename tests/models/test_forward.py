"""The dry run: what an architecture cannot do is found before it costs a training, and the fix that is told works."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.forward import _dry_run, check_forward, predict_logits

import timm  # isort: skip - after pipeline.models, which lets it be imported beside a CPU-only torch
from timm.models._registry import _model_entrypoints  # isort: skip


@pytest.fixture
def registered() -> Iterator[dict[str, object]]:
    """timm's table of architectures; what a test adds to it is taken out again."""
    before = dict(_model_entrypoints)
    _dry_run.cache_clear()
    yield _model_entrypoints
    _model_entrypoints.clear()
    _model_entrypoints.update(before)


@pytest.mark.parametrize(
    ("name", "size"),
    [("wide_resnet10_1", 8), ("resnet9", 32), ("resnet10t", 32), ("test_vit", 160), ("efficientvim_m1", 32)],
)
def test_what_can_be_trained_passes(name: str, size: int) -> None:
    check_forward(name, 7, {"image_size": size})


@pytest.mark.parametrize(
    ("name", "sizes", "arguments", "message"),
    [
        ("vit_tiny_patch16_224", {"image_size": 32}, {}, r"32 pixels \(`image_size`\): .*add img_size: 32 to"),
        (
            "vit_tiny_patch16_224",
            {"a": 224, "finetune.image_size": 240},
            {},
            r"240 pixels \(`finetune\..*dynamic_img_size: t",
        ),
        ("inception_v3", {"image_size": 32}, {}, r"Kernel size can't be greater.*; set image_size to 96"),
        ("hiera_tiny_224", {"a": 224, "b": 256}, {}, r"256 pixels \(`b`\): .*; set b to 224"),
        ("resnet10t", {"a": 32}, {"global_pool": ""}, r" with \{'global_pool': ''\} .*; drop model_args"),
        ("levit_128s", {"a": 32}, {}, r"32 pixels .*; add img_size: 32 to model_args"),
    ],
)
def test_what_cannot_take_a_size_is_refused_with_a_fix(
    name: str, sizes: dict[str, int], arguments: dict[str, str | int], message: str
) -> None:
    with pytest.raises(UserError, match=rf"`model`: {name}.*{message}"):
        check_forward(name, 7, sizes, model_args=arguments)


def test_the_fix_of_a_fixed_size_works() -> None:
    check_forward("vit_tiny_patch16_224", 7, {"a": 32}, model_args={"img_size": 32})
    check_forward("vit_tiny_patch16_224", 7, {"a": 224, "b": 240}, model_args={"dynamic_img_size": True})


@pytest.mark.parametrize("wrong", [{"in_chans": 1}, {"features_only": True}, {"pretrained": True}, {"depht": 2}])
def test_arguments_of_no_classifier_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}"):
        check_forward("resnet10t", 7, {"image_size": 32}, model_args=wrong)


class Net(nn.Module):
    """Maps images to the logits of as many classes, in `answer`'s way."""

    def __init__(self, num_classes: int = 10, answer: str = "logits", **ignored: object) -> None:
        super().__init__()
        self.num_classes, self.answer = num_classes, answer
        self.norm, self.fc = nn.BatchNorm1d(3), nn.Linear(3, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(x.mean((2, 3)))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor) -> object:
        if self.answer == "by values" and x.sum() > 1e9:
            return x
        logits = self.fc(x)
        return {"tuple": (logits, logits), "features": x}.get(self.answer, logits)

    def forward(self, x: Tensor) -> object:
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("tuple", r"its output is of type tuple, not logits"),
        ("features", r"of shape \[1, 3\], not logits of shape \[1, 7\]"),
    ],
)
def test_an_output_that_is_not_one_row_of_logits_per_image_is_refused(
    registered: dict[str, object], answer: str, message: str
) -> None:
    registered["my_net"] = lambda pretrained=False, **arguments: Net(arguments["num_classes"], answer)
    with pytest.raises(UserError, match=f"my_net .*{message}"):
        check_forward("my_net", 7, {"image_size": 8})


def test_code_that_looks_at_values_is_run_with_values(registered: dict[str, object]) -> None:
    registered["my_net"] = lambda pretrained=False, **arguments: Net(arguments["num_classes"], "by values")
    check_forward("my_net", 7, {"image_size": 8})


def test_a_single_image_per_step_is_refused_where_batchnorm_needs_two(registered: dict[str, object]) -> None:
    registered["my_net"] = lambda pretrained=False, **arguments: Net(arguments["num_classes"])
    check_forward("my_net", 7, {"image_size": 8}, batch_size=2)
    check_forward("my_net", 7, {"image_size": 8}, batch_size=1, trains=False)
    with pytest.raises(
        UserError, match=r"more than 1 value per channel.*; set batch_size so that each process has two"
    ):
        check_forward("my_net", 7, {"image_size": 8}, batch_size=1)


def test_a_dry_run_moves_no_generator() -> None:
    before = [torch.get_rng_state(), random.getstate()]
    check_forward("test_vit", 11, {"image_size": 160})
    with pytest.raises(UserError):
        check_forward("deit_tiny_patch16_224", 11, {"image_size": 32})
    assert torch.equal(torch.get_rng_state(), before[0])  # type: ignore[arg-type]
    assert random.getstate() == before[1]


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "efficientvim_m1", "crossvit_tiny_240"])
def test_logits_by_two_halves_are_those_of_timm(name: str) -> None:
    """The features of some architectures are lists or tuples."""
    model = build(name, 5).eval()
    images = torch.randn(2, 3, *timm.get_pretrained_cfg(name).input_size[1:])
    with torch.inference_mode():
        assert torch.equal(predict_logits(model, images), model(images))
        in_bf16 = predict_logits(model, images, torch.bfloat16)
    assert in_bf16.dtype == torch.float32
    assert in_bf16.shape == (2, 5)
