"""pack: keys, classes, splits and bytes come out right, and bad input is a clear error with nothing lost."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from support.advice import run_advice
from support.images import class_files, picture, png, snapshot, write_files, write_raw_tar, write_zip

from pipeline.config import SPLITS, Data
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.shards.dataset import check_disjoint, open_split
from pipeline.shards.manifest import read_manifest


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_original_bytes_keys_and_labels_are_stored(source: Path, tmp_path: Path) -> None:
    report = pack(source, tmp_path / "out", split="labeled")
    assert report.num_samples == {"labeled": 60}
    assert report.classes == read_manifest(tmp_path / "out").classes == ("cat", "dog", "emu")
    packed = members(tmp_path / "out" / "labeled-000000.tar")
    assert {name: data for name, data in packed.items() if name.endswith(".png")} == class_files(20)
    assert packed["emu/0003.cls"] == b"2"
    assert verify(tmp_path / "out").problems == ()


def test_other_formats_become_png_without_loss(tmp_path: Path) -> None:
    for kind in ("bmp", "tiff", "gif", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(picture(1)).quantize(9).convert("RGB").save(buffer, kind)
        write_files(tmp_path / "in", {f"cat/{kind}.{kind.upper()}": buffer.getvalue(), "dog/1.png": png(1)})
    pack(tmp_path / "in", tmp_path / "out", split="labeled")
    packed = members(tmp_path / "out" / "labeled-000000.tar")
    images = {name: data for name, data in packed.items() if name.startswith("cat") and not name.endswith(".cls")}
    assert sorted(images) == ["cat/bmp.png", "cat/gif.png", "cat/ppm.png", "cat/tiff.png"]
    assert len({Image.open(io.BytesIO(data)).convert("RGB").tobytes() for data in images.values()}) == 1


def test_a_png_called_jpg_is_stored_under_its_true_kind(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"cat/1.jpg": png(1), "dog/1.png": png(2)})
    pack(tmp_path / "in", tmp_path / "out", split="labeled")
    assert members(tmp_path / "out" / "labeled-000000.tar")["cat/1.png"] == png(1)


def test_packing_is_reproducible_for_any_kind_of_source_and_workers(source: Path, tmp_path: Path) -> None:
    carve = Carve(num_labeled=9, val_fraction=0.2, test_fraction=0.1, seed=3)
    files = class_files(20)
    backwards = dict(reversed(files.items()))
    sources = [source, write_raw_tar(tmp_path / "source.tar", backwards), write_zip(tmp_path / "source.zip", files)]
    results = []
    for number, path in enumerate(sources):
        out = tmp_path / f"out{number}"
        pack(path, out, carve=carve, shard_size=7, workers=number + 1)
        results.append(snapshot(out))
        manifest = read_manifest(out)
        sizes = {split: sum(entry.num_samples for entry in manifest.of_split(split)) for split in SPLITS}
        assert sizes == {"labeled": 9, "val": 12, "test": 6, "unlabeled": 33}
    for result in results:
        result.pop("manifest.json")  # it records the name of the source
        assert result == {name: data for name, data in results[0].items() if name != "manifest.json"}


def test_the_unlabeled_rest_has_no_labels_and_its_truth_is_apart(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(source, out, carve=Carve(num_labeled=6, val_fraction=0.1), shard_size=30)
    for entry in read_manifest(out).of_split("unlabeled"):
        assert not [name for name in members(out / f"{entry.name}.tar") if name.endswith(".cls")]
    rest = open_split(Data(root=out), "unlabeled")
    assert (rest.labels == -1).all()
    truth = rest.truth()
    assert truth is not None
    assert [rest.classes[label] for label in truth] == [rest.key(row).split("/")[1] for row in range(len(rest))]
    for path in (out / "truth").iterdir():
        path.unlink()
    assert open_split(Data(root=out), "unlabeled").truth() is None


def test_webdataset_reads_what_pack_writes(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"cat/a.b.png": png(1), "dog/x y/1.png": png(2)})
    pack(tmp_path / "in", tmp_path / "out", split="labeled")
    with open(tmp_path / "out" / "labeled-000000.tar", "rb") as file:
        files = webdataset.tariterators.tar_file_expander([{"url": file.name, "stream": file}])
        samples = list(webdataset.tariterators.group_by_keys(files))
    read = {sample["__key__"]: (sample["png"], sample["cls"]) for sample in samples}
    assert read == {"cat/a%2Eb": (png(1), b"0"), "dog/x y/1": (png(2), b"1")}


def test_shards_mix_classes(tmp_path: Path) -> None:
    pack(write_files(tmp_path / "in", class_files(40)), tmp_path / "out", split="labeled", shard_size=20)
    for shard in open_split(Data(root=tmp_path / "out"), "labeled").shards:
        assert len(np.unique(shard.index.label)) == 3


def test_appending_takes_class_ids_from_the_manifest(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(source, out, split="labeled")
    report = pack(write_files(tmp_path / "more", class_files(2, "emu cat", first=50_000)), out, split="labeled")
    assert report.absent_classes == {"labeled": ("dog",)}
    assert report.shards == ("labeled-000001",)
    assert members(out / "labeled-000001.tar")["emu/0000.cls"] == b"2"
    with pytest.raises(UserError, match=r"unknown class `dgo`.*did you mean `dog`"):
        pack(write_files(tmp_path / "wrong", class_files(2, "dgo")), out, split="val")


def test_a_classes_file_fixes_the_ids_on_the_first_pack(source: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("emu\ncat\nox\ndog\n")
    report = pack(source, tmp_path / "out", split="labeled", classes=tmp_path / "classes.txt")
    assert report.classes == ("emu", "cat", "ox", "dog")
    assert report.absent_classes == {"labeled": ("ox",)}
    (tmp_path / "classes.txt").write_text("cat\nemu\n")
    with pytest.raises(UserError, match="differs from the classes"):
        pack(source, tmp_path / "out", split="val", classes=tmp_path / "classes.txt")


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("a\n\nb", "line 2 is empty"), ("a\na", "twice")])
def test_a_bad_classes_file_is_named(source: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        pack(source, tmp_path / "out", split="labeled", classes=tmp_path / "classes.txt")


def test_the_same_command_again_adds_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    carve = Carve(num_labeled=6, val_fraction=0.1)
    pack(source, out, carve=carve)
    before = snapshot(out)
    report = pack(source, out, carve=carve)
    assert (report.num_samples, report.num_present) == ({}, 60)
    assert snapshot(out) == before


def test_a_grown_source_adds_only_what_is_new(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(source, out, split="labeled")
    write_files(source, class_files(2, "cat", first=90_000) | {"cat/new.png": png(12345)})
    assert pack(source, out, split="labeled").num_samples == {"labeled": 3}


def test_a_present_image_under_another_class_is_reported_and_keeps_its_label(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert pack(source, out, split="labeled").relabeled == ()
    before = snapshot(out)
    (source / "cat/0007.png").rename(source / "dog/moved.png")
    report = pack(source, out, split="labeled")
    assert (report.num_samples, report.num_present, report.relabeled) == ({}, 60, ("dog/moved.png",))
    assert snapshot(out) == before


def test_a_grown_source_is_not_carved_into_the_same_folder(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    carve = Carve(num_labeled=6, val_fraction=0.2, test_fraction=0.2)
    pack(source, out, carve=carve)
    before = snapshot(out)
    write_files(source, {name.replace("/", "/new-"): data for name, data in class_files(20, first=90_000).items()})
    with pytest.raises(UserError, match="Splits must not share images") as caught:
        pack(source, out, carve=carve)
    (out / "duplicates.csv").unlink()
    assert snapshot(out) == before
    run_advice(caught.value)
    assert sum(entry.num_samples for entry in read_manifest(out).shards) == 120


def test_images_of_another_split_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(source, out, split="labeled")
    before = snapshot(out)
    write_files(tmp_path / "test", {"cat/other-name.png": class_files(20)["cat/0007.png"], "cat/new.png": png(777_777)})
    with pytest.raises(
        UserError, match=r"1 images to be packed as test .* as labeled .*other-name.*cat/0007"
    ) as caught:
        pack(tmp_path / "test", out, split="test")
    assert (out / "duplicates.csv").read_text().split() == [
        "source,file,split,equals",
        f"{tmp_path}/test,cat/other-name.png,test,labeled/labeled-000000/cat/0007",
    ]
    run_advice(caught.value)
    assert not (out / "duplicates.csv").exists()
    assert before.items() - snapshot(out).items() <= {("manifest.json", before["manifest.json"])}
    assert [entry.num_samples for entry in read_manifest(out).of_split("test")] == [1]
    assert "cat/other-name.png,equals labeled/labeled-000000/cat/0007" in (out / "left_out.csv").read_text()


def test_bad_images_stop_the_pack_or_are_skipped_and_counted(source: Path, tmp_path: Path) -> None:
    write_files(source, {"cat/zero.png": b"", "dog/text.png": b"not an image", "dog/cut.png": png(9)[:60]})
    with pytest.raises(UserError, match=r"cat/zero\.png is empty.*dog/cut\.png.*dog/text\.png.*--skip-bad-images"):
        pack(source, tmp_path / "out", split="labeled")
    assert snapshot(tmp_path / "out") == {}
    report = pack(source, tmp_path / "out", split="labeled", bad_images="skip")
    assert report.num_samples == {"labeled": 60}
    assert list(report.skipped) == ["cat/zero.png", "dog/cut.png", "dog/text.png"]


def test_only_bad_images_are_an_error_even_when_skipped(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"cat/zero.png": b"", "dog/zero.png": b""})
    with pytest.raises(UserError, match="none of 2 images is readable"):
        pack(tmp_path / "in", tmp_path / "out", split="labeled", bad_images="skip")


def test_duplicates_and_conflicts_are_reported(source: Path, tmp_path: Path) -> None:
    write_files(
        source, {"cat/again.png": class_files(1)["cat/0000.png"], "dog/cat.png": class_files(2)["cat/0001.png"]}
    )
    report = pack(source, tmp_path / "out", carve=Carve(num_labeled=6, val_fraction=0.2))
    assert report.num_duplicates == 2
    assert report.conflicts == ("cat/0001.png = dog/cat.png",)
    data = Data(root=tmp_path / "out")
    check_disjoint({split: open_split(data, split) for split in ("labeled", "unlabeled", "val")})


def test_progress_reaches_its_total(source: Path, tmp_path: Path) -> None:
    ticks: list[tuple[int, int]] = []
    pack(source, tmp_path / "out", split="labeled", progress=lambda done, total: ticks.append((done, total)))
    assert ticks[-1] == (120, 120)
    assert ticks == sorted(ticks)


def test_arguments_are_checked(source: Path, tmp_path: Path) -> None:
    for kwargs in ({"split": "val", "carve": Carve(num_labeled=3)}, {"split": "val", "shard_size": 0}):
        with pytest.raises(UserError, match="--"):
            pack(source, tmp_path / "out", **kwargs)  # type: ignore[arg-type]
