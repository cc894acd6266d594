"""The embed stage, and what reads features: files of one provenance, probes, and labels without a pass over images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.encoders import embed_job, probe_job, probing
from support.processes import kill, label_job, outputs, run, select_job, start
from support.spoilers import be_of_the_version_before, die_after_2_label_files
from support.waiting import wait_for

from pipeline.config import Config, Start, changed
from pipeline.errors import UserError
from pipeline.evaluate.predictor import Predictor, reader_of
from pipeline.features.encoder import build_encoder
from pipeline.features.neighbors import read_neighbors
from pipeline.features.store import FeatureStore
from pipeline.files import read_json
from pipeline.labels.on_val import read_on_val
from pipeline.labels.store import LabelStore
from pipeline.models import build
from pipeline.models.format import ModelInfo, load_model, save_model
from pipeline.shards.dataset import open_split
from pipeline.stages.folder import read_output
from pipeline.stages.kinds import fingerprint_of

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def features(digits: Config, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of the digits teacher."""
    return run(embed_job(digits, tmp_path_factory.mktemp("features") / "embed-0", probing(teacher)))


@pytest.fixture(scope="module")
def probe(digits: Config, teacher: Path, features: Path) -> Path:
    """A probe on them."""
    return run(probe_job(digits, features.parent / "probe-0", probing(teacher), features))


def test_features_are_what_the_last_layer_reads(digits: Config, teacher: Path, features: Path) -> None:
    unlabeled = open_split(digits.data, "unlabeled")
    stored = torch.from_numpy(FeatureStore(features, unlabeled).all())
    model, info = load_model(teacher)
    predictor = Predictor(model, info, device=torch.device("cpu"), precision="fp32", flip=False)
    rows = np.arange(len(unlabeled))
    expected = predictor.logits(predictor.read(reader_of(info, unlabeled, digits.data), rows))
    with torch.inference_mode():
        found = model.get_classifier()(stored)
    np.testing.assert_allclose(found, expected, atol=0.02)  # fp16 has 11 bits
    assert expected.abs().max() > 1


def test_what_an_encoder_has_at_random_is_the_same_in_every_stage(teacher: Path, tmp_path: Path) -> None:
    """Or else a probe would be the classifier of other features than those that it was fitted on."""
    state = load_file(teacher / "model.safetensors")
    lost = next(name for name in state if name.endswith("conv2.weight"))
    save_file({name: tensor for name, tensor in state.items() if name != lost}, tmp_path / "part.safetensors")
    start = Start(model=str(tmp_path / "part.safetensors"), allow_random=True)
    training = changed(probing(teacher), start=start)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(build_encoder(training, tuple("0123456789"), {})[0].state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_killed_pass_ends_with_the_same_bytes(digits: Config, teacher: Path, features: Path, tmp_path: Path) -> None:
    job = embed_job(digits, tmp_path / "embed", probing(teacher))
    process = start(job, die_after_2_label_files)
    process.join()
    assert process.exitcode == -9
    assert len(list(job.out.glob("*.arrow"))) == 2
    assert outputs(run(job)) == outputs(features)


def test_sigterm_stops_a_pass_between_batches(digits: Config, teacher: Path, features: Path, tmp_path: Path) -> None:
    job = embed_job(digits, tmp_path / "embed", probing(teacher))
    process = start(job)
    wait_for(lambda: list(job.out.glob("*.arrow")) or not process.is_alive())
    assert kill(process, 0, 15) in (75, 0)
    assert outputs(run(job)) == outputs(features)


def test_files_of_a_sibling_are_taken_over(digits: Config, teacher: Path, features: Path, tmp_path: Path) -> None:
    """As after a pack of more images: a shard is embedded once."""
    shutil.copytree(features, tmp_path / "embed-a")
    out = run(embed_job(digits, tmp_path / "embed-b", probing(teacher)))
    folders = (out, tmp_path / "embed-a")
    inodes = [{path.name: path.stat().st_ino for path in folder.glob("*.arrow")} for folder in folders]
    assert inodes[0] == inodes[1]


def test_files_of_another_view_are_not(digits: Config, teacher: Path, features: Path, tmp_path: Path) -> None:
    shutil.copytree(features, tmp_path / "embed-a")
    out = run(embed_job(digits, tmp_path / "embed-b", probing(teacher, flip=True)))
    unlabeled = open_split(digits.data, "unlabeled")
    both = [FeatureStore(folder, unlabeled).all() for folder in (out, features)]
    assert np.abs(both[0] - both[1]).max() > 0.01


def test_files_of_another_version_of_the_stage_are_not_taken_over(
    digits: Config, teacher: Path, features: Path, tmp_path: Path
) -> None:
    """A probe on them has another fingerprint, too: it is of their provenance."""
    earlier = run(embed_job(digits, tmp_path / "embed-a", probing(teacher)), be_of_the_version_before)
    out = run(embed_job(digits, tmp_path / "embed-b", probing(teacher)))
    inodes = [{path.stat().st_ino for path in folder.glob("*.arrow")} for folder in (out, earlier)]
    assert not inodes[0] & inodes[1]
    probes = [probe_job(digits, tmp_path / "probe", probing(teacher), folder) for folder in (out, earlier)]
    assert fingerprint_of(probes[0]) != fingerprint_of(probes[1])
    assert np.array_equal(*(FeatureStore(folder, open_split(digits.data, "val")).all() for folder in (out, earlier)))


def test_a_probe_is_a_model_and_predicts_from_images_what_it_predicts_from_features(
    digits: Config, features: Path, probe: Path
) -> None:
    model, info = load_model(probe)
    val = open_split(digits.data, "val")
    predictor = Predictor(model, info, device=torch.device("cpu"), precision="fp32", flip=False)
    seen = predictor.read(reader_of(info, val, digits.data), np.arange(len(val)))
    from_images = torch.log_softmax(predictor.logits(seen), 1).numpy()
    with np.load(probe / "predictions-val.npz") as answers:
        np.testing.assert_allclose(np.exp(from_images.max(1)), answers["confidence"], atol=0.01)
        assert (from_images.argmax(1) == answers["pred"]).mean() > 0.99
    said = read_json(probe / "probe.json")
    assert read_output(probe / "evaluation-val.json")["nll"] == min(one["nll"] for one in said["val"])
    assert said["nearest_neighbors_val_top1"] > 0.5


def test_a_probe_labels_from_features_what_it_labels_from_images(
    digits: Config, features: Path, probe: Path, tmp_path: Path
) -> None:
    unlabeled = open_split(digits.data, "unlabeled")
    from_images = LabelStore(run(label_job(digits, tmp_path / "label-i", probe)), unlabeled)
    job = label_job(digits, tmp_path / "label-f", probe, features={probe: features})
    from_features = LabelStore(run(job), unlabeled)
    rows = np.arange(len(unlabeled))
    np.testing.assert_allclose(from_features.probabilities(rows), from_images.probabilities(rows), atol=0.02)
    assert from_features.fingerprint != from_images.fingerprint


def test_labels_of_several_teachers_are_calibrated_on_val(
    digits: Config, teacher: Path, probe: Path, features: Path, tmp_path: Path
) -> None:
    """Each teacher has its temperature, and so has their mean."""
    unlabeled, stores = open_split(digits.data, "unlabeled"), []
    for number, temperature in enumerate(("auto", 1.0)):
        config = changed(digits, label=changed(digits.label, temperature=temperature, ensemble=2))
        out = run(label_job(config, tmp_path / f"label-{number}", probe, teacher, features={probe: features}))
        stores.append(LabelStore(out, unlabeled))
    figures = read_json(stores[0].folder / "stage.json")["outputs"]["val"]
    assert len(figures["temperatures"]) == 3
    assert len(figures["teachers_top1"]) == 2
    run(select_job(digits, tmp_path / "select", stores[0].folder))
    on_val = read_json(tmp_path / "select" / "selection.json")["on_val"]
    assert (on_val["ece"], on_val["temperatures"]) == (figures["ece"], figures["temperatures"])
    stored = read_on_val(stores[0].folder)
    assert stored is not None
    found = stored.metrics()
    assert (found.top1, found.num_samples) == (figures["top1"], figures["num_samples"])
    assert (found.ece, found.nll) == pytest.approx((figures["ece"], figures["nll"]))
    assert read_on_val(stores[1].folder) is None, "no pass over val is made for it"
    log_odds = [np.sort(store.log_odds) for store in stores]
    assert np.abs(log_odds[0] - log_odds[1]).max() > 0.1
    assert (stores[0].label == stores[1].label).mean() > 0.9


def test_neighbors_label_along_with_a_probe_and_are_no_model(
    digits: Config, teacher: Path, probe: Path, features: Path, tmp_path: Path
) -> None:
    """They learn from labels and from a selection, and their labels are the mean with the probe's, as of two models."""
    unlabeled, training = open_split(digits.data, "unlabeled"), probing(teacher, classifier="knn")
    selection = run(select_job(digits, tmp_path / "select", run(label_job(digits, tmp_path / "label", probe))))
    knn = run(probe_job(digits, tmp_path / "knn", training, features, role="committee", selection=selection))
    said, record = read_json(knn / "probe.json"), read_json(knn / "stage.json")
    assert read_output(knn / "evaluation-val.json")["nll"] == min(one["nll"] for one in said["val"])
    assert said["num_rows"] > len(open_split(digits.data, "labeled"))
    assert record["outputs"]["neighbors"] == said["neighbors"]
    assert not list(knn.glob("model.*"))
    job = label_job(changed(digits, label=changed(digits.label, ensemble=2)), tmp_path / "both", probe, knn)
    both = LabelStore(run(changed(job, features={probe: features, knn: features})), unlabeled)
    assert read_json(both.folder / "stage.json")["inputs"]["teacher1"] == record["outputs"]["model_sha256"]
    rows = np.arange(len(unlabeled))
    stored = torch.from_numpy(FeatureStore(features, unlabeled).all())
    with torch.inference_mode():
        of_probe = torch.softmax(load_model(probe)[0].get_classifier()(stored), dim=1)
    expected = (of_probe + read_neighbors(knn).log_probs(stored).exp()) / 2
    np.testing.assert_allclose(both.probabilities(rows), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"no model at .*knn: a probe by nearest neighbors is none"):
        run(label_job(digits, tmp_path / "alone", knn))


def test_a_network_whose_classifier_reads_something_else_is_refused(digits: Config, tmp_path: Path) -> None:
    arguments = {"width": 8}
    info = ModelInfo(
        schema=1,
        architecture="resnet9",
        model_args=arguments,
        classes=("a", "b"),
        input_size=(3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        metrics={},
        lineage={},
    )
    save_model(tmp_path / "m.safetensors", build("resnet9", 2, model_args=arguments).state_dict(), info)
    with pytest.raises(UserError, match="a probe cannot stand in for"):
        run(embed_job(digits, tmp_path / "embed", probing(tmp_path / "m.safetensors")))


def test_the_prior_of_val_moves_logits_by_the_ratio_of_shares(
    digits: Config, teacher: Path, features: Path, probe: Path, tmp_path: Path
) -> None:
    strength = read_json(probe / "probe.json")["c"]
    plain, moved = (
        run(probe_job(digits, tmp_path / f"probe-{prior}", probing(teacher, c=strength, prior=prior), features))
        for prior in ("labeled", "val")
    )
    biases = [load_model(folder)[0].get_classifier().bias.detach().numpy() for folder in (plain, moved)]
    of_labeled, of_val = (
        np.bincount(open_split(digits.data, split).labels, minlength=10) + extra
        for split, extra in (("labeled", 0), ("val", 1))
    )
    expected = np.log(of_val / of_val.sum()) - np.log(of_labeled / of_labeled.sum())
    np.testing.assert_allclose(biases[1] - biases[0], expected, atol=1e-5)
    assert np.abs(expected).max() > 0.01
