"""`selftrain predict` says of every image, once, what `selftrain evaluate` measures."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from support.images import class_files, encoded, png, write_files, write_raw_tar, write_zip

from pipeline.config import Evaluate, Runtime
from pipeline.errors import Interrupted, UserError
from pipeline.evaluate.metrics import compute_metrics
from pipeline.evaluate.on_demand import evaluate_on
from pipeline.models import build
from pipeline.models.format import ModelInfo, load_model, save_model
from pipeline.packing.pack import pack
from pipeline.predict.images import Images
from pipeline.predict.prediction import Done, Wanted, predict_images
from pipeline.stages.machine import resolve

RUNTIME = resolve(Runtime(device="cpu", threads=1, precision="fp32"))
CLASSES = ("cat", "dog", "emu")


def write_model(path: Path, seed: int = 0, size: int = 8, crop_pct: float = 1.0) -> Path:
    torch.manual_seed(seed)
    info = ModelInfo(
        schema=1,
        architecture="wide_resnet10_1",
        model_args={},
        classes=CLASSES,
        input_size=(3, size, size),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_pct=crop_pct,
        interpolation="bilinear",
        metrics={},
        lineage={},
    )
    save_model(path, build("wide_resnet10_1", 3).state_dict(), info)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """90 images."""
    return write_files(tmp_path / "in", class_files(30))


def predict(
    model: Path, images: Path, out: Path, *, progress: Callable[[int, int], None] | None = None, **wanted: object
) -> Done:
    how = Evaluate(batch_size=4)
    return predict_images(
        model, images, Wanted(out=out, **wanted), how, RUNTIME, progress or (lambda done, total: None)
    )  # type: ignore[arg-type]


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def photographs(folder: Path) -> Path:
    """JPEGs that are larger than twice what a model sees, so that they are decoded at a part of their size."""
    generator = np.random.default_rng(0)
    for number in range(12):
        small = generator.integers(0, 256, (6, 9, 3), dtype=np.uint8)
        path = folder / CLASSES[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize((180, 120), Image.Resampling.BICUBIC).save(path)
    return folder


def test_photographs_are_seen_as_evaluate_shows_them(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.safetensors", size=16, crop_pct=0.8)
    images = photographs(tmp_path / "in")
    predict(model, images, tmp_path / "o.csv", probabilities=True)
    table = rows(tmp_path / "o.csv")
    log_probs = np.log([[float(row[f"p_{name}"]) for name in CLASSES] for row in table])
    labels = np.array([CLASSES.index(row["image"].split("/")[0]) for row in table])
    found = compute_metrics(log_probs, labels)
    expected = evaluate_on(model, images, "val", Evaluate(), RUNTIME).metrics
    assert found.top1 == expected.top1 == np.mean([row["label"] == row["image"].split("/")[0] for row in table])
    assert found.nll == pytest.approx(expected.nll, abs=1e-5)


def test_every_form_of_the_same_images_has_the_same_rows(model: Path, folder: Path, tmp_path: Path) -> None:
    files = class_files(30)
    pack(folder, tmp_path / "packed", split="val", shard_size=40)
    pack(write_files(tmp_path / "more", class_files(2, first=50_000)), tmp_path / "packed", split="unlabeled")
    samples = [(name, data) for name, data in files.items()] + [(f"{name[:-4]}.cls", b"0") for name in files]
    tar = write_raw_tar(tmp_path / "tars" / "a.tar", samples)
    forms = [folder, write_zip(tmp_path / "in.zip", files), tar, tar.parent, tmp_path / "packed"]
    tables = []
    for number, form in enumerate(forms):
        split = {"split": "val"} if number == 4 else {}
        assert predict(model, form, tmp_path / f"{number}.csv", **split).num_rows == 90
        tables.append({row["image"]: (row["label"], row["confidence"]) for row in rows(tmp_path / f"{number}.csv")})
    assert list(tables[0]) == sorted(files)
    assert tables[0] == tables[1] == tables[2]
    assert tables[3] == {f"a.tar/{name}": said for name, said in tables[0].items()}
    packed = {f"{name.partition('/')[2]}.png": said for name, said in tables[4].items()}
    assert packed == tables[0]
    assert next(iter(tables[4])).startswith("val-000000/")
    assert predict(model, tmp_path / "packed", tmp_path / "all.csv").num_rows == 96
    with pytest.raises(UserError, match=r"--split val: .* is no packed folder"):
        predict(model, folder, tmp_path / "x.csv", split="val")


@pytest.mark.parametrize("stop_at", [1, 33, 90, 91])
def test_after_a_stop_only_what_is_missing_is_predicted_and_the_files_are_the_same(
    stop_at: int, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "dog" / "0001x.png").write_bytes(b"no image")
    wanted = {"top_k": 2, "probabilities": True}
    predict(model, folder, tmp_path / "whole.csv", features=tmp_path / "whole.npy", **wanted)

    def stop(done: int, total: int) -> None:
        if done >= stop_at:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        predict(model, folder, tmp_path / "o.csv", features=tmp_path / "o.npy", progress=stop, **wanted)
    assert not (tmp_path / "o.csv").exists()
    again: list[int] = []
    pixels = Images.pixels
    monkeypatch.setattr(Images, "pixels", lambda self, row, *how: again.append(row) or pixels(self, row, *how))
    predict(model, folder, tmp_path / "o.csv", features=tmp_path / "o.npy", **wanted)
    assert sorted(again) == list(range(stop_at // 8 * 8, 91))
    for name in ("{}.csv", "{}.npy", "{}.csv.left_out.csv"):
        of_both = [(tmp_path / name.format(which)).read_bytes() for which in ("whole", "o")]
        assert of_both[0] == of_both[1]
    assert len({row["image"] for row in rows(tmp_path / "o.csv")}) == 90
    assert not (tmp_path / "o.csv.parts").exists()


def test_parts_of_another_prediction_are_never_mixed_in(model: Path, folder: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 40:
            raise Interrupted("stop")

    out, other = tmp_path / "o.csv", write_model(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(Interrupted):
        predict(model, folder, out, progress=stop)
    with pytest.raises(
        UserError, match=r"o\.csv\.parts holds the parts of another .*not the same: model\); .*--overwrite"
    ):
        predict(other, folder, out)
    with pytest.raises(UserError, match=r"not the same: top_k"):
        predict(model, folder, out, top_k=2)
    (folder / "cat" / "0000.png").write_bytes(png(77_777))
    with pytest.raises(UserError, match=r"not the same: images"):
        predict(model, folder, out)
    predict(other, folder, out, overwrite=True)
    predict(other, folder, tmp_path / "fresh.csv")
    assert out.read_bytes() == (tmp_path / "fresh.csv").read_bytes()


def test_a_finished_file_is_replaced_only_when_asked(model: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("mine")
    with pytest.raises(UserError, match=r"o\.csv exists; .* --overwrite"):
        predict(model, folder, tmp_path / "o.csv")
    assert (tmp_path / "o.csv").read_text() == "mine"
    assert not (tmp_path / "o.csv.parts").exists()
    predict(model, folder, tmp_path / "o.csv", overwrite=True)
    assert len(rows(tmp_path / "o.csv")) == 90
    with pytest.raises(UserError, match=r"--out .*o\.xls: the extension says the format; .*\.csv"):
        predict(model, folder, tmp_path / "o.xls")


def test_damaged_images_are_listed_or_stop_it(model: Path, tmp_path: Path) -> None:
    """Also where a whole batch of four is damaged, and where all are."""
    broken = {f"cat/{number:04d}.png": b"no image" for number in range(8)}
    folder = write_files(tmp_path / "in", {**class_files(10), **broken})
    broken["dog/gone.png"] = b""
    (folder / "dog" / "gone.png").symlink_to(tmp_path / "nothing")
    done = predict(model, folder, tmp_path / "o.csv", features=tmp_path / "o.npy")
    assert (done.num_rows, len(done.bad), len(rows(tmp_path / "o.csv"))) == (22, 9, 22)
    assert np.load(tmp_path / "o.npy").shape == (22, 64)
    assert [row["image"] for row in rows(tmp_path / "o.csv.left_out.csv")] == sorted(broken)
    with pytest.raises(UserError, match=r"cat/0000.png is not a readable image.*5 more.*--bad-images skip"):
        predict(model, folder, tmp_path / "strict.csv", bad_images="error")
    with pytest.raises(UserError, match=r"none of 9 images is readable"):
        predict(model, write_files(tmp_path / "all", broken), tmp_path / "none.csv")


def test_the_formats_hold_the_same_values(model: Path, folder: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        predict(model, folder, tmp_path / f"o.{suffix}", top_k=5, probabilities=True)
    table = pyarrow.parquet.read_table(tmp_path / "o.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    texts = rows(tmp_path / "o.csv")
    tabs = list(csv.DictReader(io.StringIO((tmp_path / "o.tsv").read_text()), delimiter="\t"))
    columns = ["image", "label", "confidence", "label_2", "confidence_2", "label_3", "confidence_3"]
    assert list(table[0]) == list(lines[0]) == list(texts[0]) == [*columns, "p_cat", "p_dog", "p_emu"]
    assert tabs == texts
    for row, line, text in zip(table, lines, texts, strict=True):
        assert line == pytest.approx(
            {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-5) for k, v in row.items()}
        )
        assert {k: str(v) for k, v in line.items()} == text


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_features_are_what_the_classifier_sees(suffix: str, model: Path, folder: Path, tmp_path: Path) -> None:
    predict(model, folder, tmp_path / "o.csv", features=tmp_path / f"f.{suffix}", probabilities=True)
    loaded = np.load(tmp_path / f"f.{suffix}")
    features = torch.from_numpy(loaded["features"] if suffix == "npz" else loaded)
    assert features.dtype == torch.float16
    network, _ = load_model(model)
    found = torch.softmax(network.fc(features.float()), 1).detach().numpy()  # type: ignore[operator]
    expected = [[float(row[f"p_{name}"]) for name in CLASSES] for row in rows(tmp_path / "o.csv")]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_images_that_would_be_nearly_black_are_refused(model: Path, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 4096, (5, 8, 8), dtype=np.uint16)
    folder = write_files(tmp_path / "in", {f"{n}.png": encoded(pixels) for n, pixels in enumerate(deep)})
    with pytest.raises(UserError, match=r"in place of 16 bits; .*--value-range 0,4095.*selftrain pack"):
        predict(model, folder, tmp_path / "o.csv")


def test_a_read_of_a_packed_test_split_is_logged_in_the_run(model: Path, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for suffix in (".safetensors", ".json"):
        shutil.copy(model.with_suffix(suffix), run / f"m{suffix}")
    (run / "run.lock").touch()
    (run / "config.yaml").touch()
    for split in ("val", "test"):
        pack(write_files(tmp_path / split, class_files(2, first=len(split) * 9000)), tmp_path / "packed", split=split)
    predict(run / "m.safetensors", tmp_path / "packed", tmp_path / "val.csv", split="val")
    assert not (run / "test_reads.jsonl").exists()
    predict(run / "m.safetensors", tmp_path / "packed", tmp_path / "all.csv")
    (line,) = (run / "test_reads.jsonl").read_text().splitlines()
    assert json.loads(line)["model"] == "m.safetensors"
