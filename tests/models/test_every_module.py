"""One small architecture of every module of timm trains, evaluates and exports, or is refused by the dry run.

`python tests/models/test_every_module.py` chooses them anew, in some minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import ROOT
from support.images import class_files, write_files
from support.processes import run, train_job

from pipeline.config import Config, Data, Split, Training, changed
from pipeline.errors import UserError
from pipeline.models.folding import FoldedBatchNorm
from pipeline.models.format import export_model, load_model
from pipeline.models.forward import SIZES, check_forward, predict_logits
from pipeline.models.registry import module_of
from pipeline.packing.pack import pack

import timm  # isort: skip - after pipeline.models, which lets it be imported beside a CPU-only torch

TABLE = Path(__file__).parents[1] / "golden" / "architectures.json"
ROWS: dict[str, dict[str, Any]] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
"""Module of timm -> its smallest `model`, the smallest of our sizes that it takes, and `model_args` that make it
smaller still, and why it is `refused`, if it is."""
SMALLER: dict[str, dict[str, int]] = {"deepseek_vit": {"depth": 1}, "gemma4_vit": {"depth": 1}}


def modules() -> Iterator[tuple[str, list[str]]]:
    """Module of timm's own -> the architectures that it registers."""
    for module in sorted(timm.list_modules()):
        names = timm.list_models(module=module)
        if names and module_of(names[0]).startswith("timm."):  # and not of ours, or of a plugin that a test loaded
            yield module, names


def test_every_module_of_timm_is_in_the_table() -> None:
    assert {module for module, _ in modules()} == set(ROWS), "run python tests/models/test_every_module.py"


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Few images, because some architectures take no small ones."""
    folder = tmp_path_factory.mktemp("two")
    splits: tuple[Split, ...] = ("labeled", "val")
    for number, split in enumerate(splits):
        write_files(folder / split, class_files(2, "cat dog", first=10_000 * number))
        pack(folder / split, folder / "packed", split=split)
    return Data(root=folder / "packed")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("module", ROWS)
def test_a_small_architecture_of_every_module_works(
    digits: Config, two_classes: Data, tmp_path: Path, module: str
) -> None:
    row = ROWS[module]
    if "refused" not in row:
        check_works(digits, two_classes, tmp_path, row)
        return
    with pytest.raises(UserError, match=row["refused"]):
        check_works(digits, two_classes, tmp_path, row)


def test_the_page_of_models_names_those_that_are_refused() -> None:
    page, _ = (ROOT / "docs" / "models.md").read_text().split("## Networks of the papers")
    named = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", page, re.MULTILINE))
    refused = {module: row["refused"] for module, row in ROWS.items() if "refused" in row}
    assert named.keys() == refused.keys()
    assert all(reason in named[module] for module, reason in refused.items())


def check_works(digits: Config, data: Data, folder: Path, row: dict[str, Any]) -> None:
    """Build it, take one step, evaluate, export, open what was exported in timm, and fold its BatchNorm."""
    check_forward(row["model"], 2, {"image_size": row["size"]}, model_args=row.get("model_args"))
    small = {"model": row["model"], "model_args": row.get("model_args", {}), "image_size": row["size"], "steps": 1}
    short = {**small, "warmup_steps": 0, "batch_size": 2, "evaluations": 1, "weak": {"crop": "none"}}
    # Two images leave BatchNorms so little variance that gradients of EfficientViM reach 1e7 on some processors.
    short |= {"optimizer": {"lr": 1e-4}, "clip_norm": 1.0}
    training = Training.model_validate({**digits.teacher.model_dump(), **short})
    stage = run(train_job(changed(digits, data=data), folder / "train", training=training))
    export_model(stage, folder / "model.safetensors")
    model, info = load_model(stage)
    exported = timm.create_model(
        info.architecture, num_classes=2, checkpoint_path=folder / "model.safetensors", **info.model_args
    ).eval()
    images = torch.randn(2, *info.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(images)
        assert torch.equal(exported(images), expected)
        torch.testing.assert_close(predict_logits(model, images), expected)
        model, images = model.double(), images.double()  # after one step, networks amplify the rounding of float32
        features = model.forward_features(images)
        with FoldedBatchNorm(model, images[:1]):
            torch.testing.assert_close(model.forward_features(images), features)


def smallest(names: list[str], **arguments: int) -> str:
    """The architecture with the fewest parameters."""
    num = {}
    for name in names:
        with torch.device("meta"):
            num[name] = sum(p.numel() for p in timm.create_model(name, **arguments).parameters())
    return min(num, key=lambda name: (num[name], name))


def smallest_size(name: str, arguments: dict[str, int]) -> int:
    """The smallest of our sizes that an architecture takes, or its own."""
    for size in (*SIZES[:5], timm.get_pretrained_cfg(name).input_size[-1]):
        try:
            check_forward(name, 2, {"image_size": size}, model_args=arguments)
        except UserError:
            continue
        return int(size)
    return int(timm.get_pretrained_cfg(name).input_size[-1])


if __name__ == "__main__":
    rows = []
    for module, names in modules():
        model, more = smallest(names), SMALLER.get(module, {})
        row = {"model": model, "size": smallest_size(model, more), **({"model_args": more} if more else {})}
        row |= {key: value for key, value in ROWS.get(module, {}).items() if key == "refused"}
        rows.append(f" {json.dumps(module)}: {json.dumps(row)}")
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
