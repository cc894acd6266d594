"""`selftrain evaluate` reads what pack and run read, and its advice is its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.advice import commands_of
from support.images import class_files, png, write_files, write_raw_tar, write_zip

from pipeline.config import Evaluate, Runtime
from pipeline.errors import UserError
from pipeline.evaluate.on_demand import Evaluation, evaluate_on
from pipeline.models import build
from pipeline.models.format import ModelInfo, save_model
from pipeline.packing.pack import pack
from pipeline.stages.machine import resolve


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of three classes with random weights."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    info = ModelInfo(
        schema=1,
        architecture="wide_resnet10_1",
        model_args={},
        classes=("cat", "dog", "emu"),
        input_size=(3, 8, 8),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        metrics={},
        lineage={},
    )
    save_model(path, build("wide_resnet10_1", 3).state_dict(), info)
    return path


def figures(model: Path, data: Path) -> dict[str, object]:
    return evaluation(model, data).to_json()


def evaluation(model: Path, data: Path) -> Evaluation:
    return evaluate_on(model, data, "val", Evaluate(), resolve(Runtime(device="cpu", threads=1)))


def test_every_form_of_the_same_images_gives_the_same_figures(model: Path, tmp_path: Path) -> None:
    files = class_files(3)
    folder = write_files(tmp_path / "in", files)
    pack(folder, tmp_path / "packed", split="val")
    samples = [
        file
        for name, data in files.items()
        for key, label in [(name.removesuffix(".png"), ("cat", "dog", "emu").index(name.split("/")[0]))]
        for file in ((f"{key}.png", data), (f"{key}.cls", b"%d" % label))
    ]
    tar = write_raw_tar(tmp_path / "shards" / "val-000000.tar", samples)
    nested = write_files(tmp_path / "nested", {f"a/b/val/{name}": data for name, data in files.items()})
    forms = [tmp_path / "packed", write_zip(tmp_path / "in.zip", files), tar, tar.parent, nested]
    assert all(figures(model, form) == figures(model, folder) for form in forms)


def test_one_known_class_alone_is_evaluated(model: Path, tmp_path: Path) -> None:
    assert figures(model, write_files(tmp_path / "in", class_files(3, "dog")))["num_samples"] == 3


def test_the_commands_of_messages_are_those_of_evaluate(model: Path, tmp_path: Path) -> None:
    files = {f"{split}/{name}": data for split in ("train", "test") for name, data in class_files(2).items()}
    data = write_files(tmp_path / "in", files)
    with pytest.raises(UserError, match="look like splits") as caught:
        figures(model, data)
    assert commands_of(caught.value) == [
        ["selftrain", "evaluate", str(model), str(data / "test"), "--split", "test"],
        ["selftrain", "evaluate", str(model), str(data / "train"), "--split", "labeled"],
    ]
    assert figures(model, data / "test")["num_samples"] == 6


def test_what_is_left_out_is_told(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_files(tmp_path / "in", {**class_files(2), "cat/notes.txt": b"x"})
    assert figures(model, data)["num_samples"] == 6
    assert "files that are no images are left out: 1 .txt" in caplog.text
    tar = write_raw_tar(tmp_path / "t" / "a.tar", {"1.png": png(1), "1.CLS": b"0", "1.json": b"{}"})
    assert figures(model, tar)["num_samples"] == 1
    assert "belong to no sample are not used: 1 .json" in caplog.text


def test_a_tar_beside_class_folders_does_not_take_their_place(model: Path, tmp_path: Path) -> None:
    data = write_files(tmp_path / "in", class_files(2))
    write_raw_tar(data / "stray.tar", {"1.png": png(1), "1.cls": b"0"})
    assert figures(model, data)["num_samples"] == 6
