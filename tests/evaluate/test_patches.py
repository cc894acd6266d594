"""Ten patches and several scales against Pillow, patch by patch, and a float64 mean of their probabilities."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import write_files
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from pipeline.arrays import F64Array
from pipeline.cli.app import app
from pipeline.config import Config, Data, Evaluate, Runtime, changed, parse
from pipeline.errors import UserError
from pipeline.evaluate.on_demand import evaluate_on
from pipeline.evaluate.patches import as_text, in_fingerprint, num_patches, patches_of, sides_of
from pipeline.evaluate.predictor import Predictor, predict, reader_of
from pipeline.methods import METHODS
from pipeline.models import build
from pipeline.models.cost import cost_of
from pipeline.models.format import ModelInfo, load_model, save_model
from pipeline.packing.pack import pack
from pipeline.predict.prediction import Wanted, predict_images
from pipeline.runs.dry_run import check_networks, check_patches
from pipeline.shards.dataset import open_split

SIZE, CLASSES, NUM = 16, ("cat", "dog", "emu"), 6
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CPU = torch.device("cpu")
WAYS = [("ten", (1.143,)), ("ten", (1.0,)), ("center", (1.0, 1.5)), ("ten", (1.0, 1.143, 1.714, 2.143, 2.857))]
RUNTIME = Runtime(device="cpu", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees 16 of 18 pixels, photographs of 40 x 56 in class folders, and the same packed."""
    folder = tmp_path_factory.mktemp("patches")
    torch.manual_seed(0)
    network = build("wide_resnet10_1", len(CLASSES))
    with torch.no_grad():
        network.get_classifier().weight.mul_(5)  # so that patches disagree
    info = ModelInfo(
        schema=1, architecture="wide_resnet10_1", model_args={}, classes=CLASSES, input_size=(3, SIZE, SIZE),
        mean=MEAN, std=STD, crop_pct=0.875, metrics={}, lineage={},
    )  # fmt: skip
    save_model(folder / "model.safetensors", network.state_dict(), info)
    files = {}
    for number in range(NUM):
        smooth = np.random.default_rng(number).integers(0, 256, (5, 7, 3), np.uint8)
        path = folder / "one.png"
        Image.fromarray(smooth).resize((56, 40), Image.Resampling.BICUBIC).save(path)
        files[f"{CLASSES[number % 3]}/{number}.png"] = path.read_bytes()
    write_files(folder / "images", files)
    pack(folder / "images", folder / "packed", split="val")
    return folder


def by_pillow(image: Image.Image, crops: str, scales: tuple[float, ...], model: torch.nn.Module) -> F64Array:
    """The mean of the probabilities of all patches, each cut on its own."""
    of_scales = []
    for scale in scales:
        side = round(scale * SIZE / 0.875)
        centre = (8, 0, 48, 40)  # the square of 40 x 56; the filter looks beyond its edges
        resized, margin = image.resize((side, side), Image.Resampling.BICUBIC, box=centre), side - SIZE
        corners = [(round(margin / 2),) * 2]
        corners += [(0, 0), (0, margin), (margin, 0), (margin, margin)] if crops == "ten" else []
        patches = [resized.crop((left, top, left + SIZE, top + SIZE)) for left, top in corners]
        patches += [p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in patches] if crops == "ten" else []
        pixels = (np.stack([np.asarray(p) for p in patches]) / 255 - MEAN) / STD
        with torch.inference_mode():
            logits = model(torch.from_numpy(pixels).float().permute(0, 3, 1, 2)).double()
        of_scales.append(torch.softmax(logits, 1).mean(0).numpy())
    return np.mean(of_scales, axis=0)


def expected(folder: Path, crops: str, scales: tuple[float, ...]) -> dict[str, F64Array]:
    model, _ = load_model(folder / "model.safetensors")
    paths = sorted((folder / "images").rglob("*.png"))
    return {path.stem: by_pillow(Image.open(path), crops, scales, model) for path in paths}


@pytest.mark.parametrize(("crops", "scales"), WAYS)
def test_probabilities_are_the_mean_over_the_patches_that_pillow_cuts(
    folder: Path, crops: str, scales: tuple[float, ...]
) -> None:
    model, info = load_model(folder / "model.safetensors")
    data = Data(root=folder / "packed", cache="always", cache_dir=folder / "cache")
    dataset, of_pillow = open_split(data, "val"), expected(folder, crops, scales)
    predictor = Predictor(model, info, device=CPU, precision="fp32", flip=False, crops=crops, scales=scales)  # type: ignore[arg-type]
    found = np.exp(predict(predictor, reader_of(info, dataset, data, scales), NUM, 4))
    plain = Predictor(model, info, device=CPU, precision="fp32", flip=False)
    alone = np.exp(predict(plain, reader_of(info, dataset, data), NUM, 4))
    for row in range(NUM):
        np.testing.assert_allclose(found[row], of_pillow[dataset.key(row).rpartition("/")[2]], atol=1e-4)
    assert np.abs(found - alone).max() > 0.01


def test_predict_and_evaluate_see_the_same_patches(folder: Path) -> None:
    evaluate = Evaluate(crops="ten", scales=(1.0, 1.5), batch_size=4)
    of_pillow = expected(folder, "ten", (1.0, 1.5))
    model, out = folder / "model.safetensors", folder / "table.csv"
    predict_images(model, folder / "images", Wanted(out, probabilities=True), evaluate, RUNTIME)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    for row in rows:
        probabilities = [float(row[f"p_{name}"]) for name in CLASSES]
        np.testing.assert_allclose(probabilities, of_pillow[Path(row["image"]).stem], atol=1e-4)
    nll = -np.mean([np.log(of_pillow[str(n)][n % 3]) for n in range(NUM)])
    assert evaluate_on(model, folder / "packed", "val", evaluate, RUNTIME).metrics.nll == pytest.approx(nll, rel=1e-3)
    command = ["evaluate", str(model), str(folder / "packed"), "--split", "val", "--json"]
    found = [CliRunner().invoke(app, [*command, *more]) for more in ((), ("--crops", "ten", "--scales", "1,1.5"))]
    assert [done.exit_code for done in found] == [0, 0]
    assert found[0].output != found[1].output


@pytest.mark.parametrize(
    ("crops", "scales", "message"),
    [
        ("ten", (1.0,), "all patches are the whole image; set scales"),
        ("center", (0.5,), "0.5 shows the model images of 112 pixels, below its own 224; raise it to at least 1"),
    ],
)
def test_patches_that_cannot_be_are_refused_before_a_training(
    crops: str, scales: tuple[float, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sides_of(224, 1.0, crops, scales)  # type: ignore[arg-type]
    config = parse(Config, {"evaluate": {"crops": crops, "scales": scales}, "teacher": {"image_size": 224}}, "test")
    with pytest.raises(UserError, match=rf"evaluate: .*{message}"):
        check_patches("teacher", config.teacher, "evaluate", config.evaluate)


def test_patches_that_no_label_is_made_of_are_not_refused() -> None:
    raw = {"label": {"scales": [0.5]}, "teacher": {"model": "resnet9"}, "student": {"model": "resnet9"}}
    check_networks(parse(Config, {**raw, "rounds": {"num_rounds": 0}}, "test"), METHODS["noisy_student"], 10)
    with pytest.raises(UserError, match=r"label: .*0\.5 shows the model images of 16 pixels"):
        check_networks(parse(Config, {**raw, "rounds": {"num_rounds": 1}}, "test"), METHODS["noisy_student"], 10)


def test_the_scales_of_the_papers_are_their_sides() -> None:
    assert sides_of(224, 1.0, "ten", (1.0, 1.143, 1.714, 2.143, 2.857)) == (224, 256, 384, 480, 640)
    assert sides_of(224, 0.875, "ten", (1.0,)) == (256,)
    assert sides_of(331, 1.0, "ten", (1.09,)) == (361,)


def test_a_probe_sees_features_alone() -> None:
    raw = {"teacher": {"probe": {}, "start": {"model": "timm:resnet18"}}, "label": {"scales": [1, 1.2]}}
    with pytest.raises(UserError, match=r"label.scales is .* stored features"):
        parse(Config, raw, "test")


def test_the_centre_alone_leaves_no_trace() -> None:
    assert in_fingerprint(Evaluate()) == {}
    assert as_text(Evaluate(flip=True)) == "center"
    assert in_fingerprint(Evaluate(crops="ten", scales=(1.0, 1.5))) == {"view": "ten at 1.0,1.5"}


@pytest.mark.parametrize(("crops", "scales"), [("center", (1.0,)), *WAYS])
@pytest.mark.parametrize("flip", [False, True])
def test_the_counted_patches_are_the_passes_that_are_made(
    folder: Path, crops: str, scales: tuple[float, ...], flip: bool
) -> None:
    """What an ablation says that a labeling costs."""
    model, info = load_model(folder / "model.safetensors")
    how = parse(Evaluate, {"flip": flip, "crops": crops, "scales": scales}, "test")
    predictor = Predictor(model, info, device=CPU, precision="fp32", **patches_of(how))
    data = Data(root=folder / "packed")
    reader = reader_of(info, open_split(data, "val"), data, how.scales)
    with FlopCounterMode(display=False) as counter:
        predictor.logits(predictor.read(reader, np.arange(1)))
    assert counter.get_total_flops() == num_patches(how, info) * cost_of(info).flops


def test_images_of_models_are_read_once_only_if_their_sides_are_equal_at_every_scale(folder: Path) -> None:
    """15 / 0.875 and 17 / 1 pixels are 17 both, and four times as many are 69 and 68."""
    model, info = load_model(folder / "model.safetensors")
    infos = [changed(info, input_size=(3, side, side), crop_pct=share) for side, share in ((15, 0.875), (17, 1.0))]
    for scales, number in (((1.0,), 1), ((4.0,), 2)):
        how = {"device": CPU, "precision": "fp32", "flip": False, "scales": scales}
        seen = {Predictor(model, one, **how).seen for one in infos}
        assert len(seen) == number
