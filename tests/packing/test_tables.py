"""Labels in a table beside images, in the forms that people have: every row is used, or told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.advice import run_advice
from support.images import left_out_of, png, write_files, write_raw_tar, write_zip

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.labeling import Labeling
from pipeline.packing.pack import pack
from pipeline.packing.tables import ImageNames, parse_table
from pipeline.packing.verify import verify
from pipeline.shards.dataset import check_disjoint, open_split
from pipeline.shards.manifest import read_manifest

IMAGES = {f"images/{number}.png": png(number) for number in range(6)}
LABELS = ["cat", "dog", "cat", "dog", "Not sure", ""]


def labels_of(out: Path, split: str = "labeled") -> dict[str, str]:
    """Key -> class of a split."""
    data = open_split(Data(root=out), split)  # type: ignore[arg-type]
    return {
        key: data.classes[label]
        for shard in data.shards
        for key, label in zip(shard.index.key, shard.index.label, strict=True)
    }


def table(rows: list[tuple[str, ...]], delimiter: str = ",") -> bytes:
    return "".join(f"{delimiter.join(row)}\n" for row in rows).encode()


ROWS = [("image", "label"), *((str(number), label) for number, label in enumerate(LABELS))]
EXPECTED = {"0": "cat", "1": "dog", "2": "cat", "3": "dog"}
FORMS: dict[str, bytes] = {
    "csv": table(ROWS),
    "tsv": table(ROWS, "\t"),
    "semicolons": table(ROWS, ";"),
    "mark of Windows": b"\xef\xbb\xbf" + table(ROWS).replace(b"\n", b"\r\n"),
    "utf-16": table(ROWS).decode().encode("utf-16"),
    "extensions": table([ROWS[0], *((f"{name}.png", label) for name, label in ROWS[1:])]),
    "folders": table([ROWS[0], *((f"images/{name}.png", label) for name, label in ROWS[1:])]),
    "another root": table([ROWS[0], *((f"/home/me/images/{name}", label) for name, label in ROWS[1:])]),
    "backslashes": table([ROWS[0], *((f".\\images\\{name}.PNG", label) for name, label in ROWS[1:])]),
    "quotes": table([ROWS[0], *((f'"{name}"', f'"{label}"') for name, label in ROWS[1:])]),
    "other columns": table([("label", "age", "photo"), *((label, "3", f"{name}.png") for name, label in ROWS[1:])]),
    "json": json.dumps([{"image": name, "label": label} for name, label in ROWS[1:]]).encode(),
    "json lines": "\n".join(
        json.dumps({"file_name": f"{name}.png", "label": label or None, "box": [1, 2]}) for name, label in ROWS[1:]
    ).encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_are_read_in_the_forms_that_people_have(tmp_path: Path, form: str) -> None:
    source = write_files(tmp_path / "in", {**IMAGES, "labels.csv": FORMS[form]})
    report = pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv", drop=("Not sure",)))
    assert labels_of(tmp_path / "out") == EXPECTED
    assert report.num_samples == {"labeled": 4, "unlabeled": 2}
    assert any("of Not sure are unlabeled" in note for note in report.notes)
    assert report.ignored == {}
    assert verify(tmp_path / "out").problems == ()


@pytest.mark.parametrize(
    "write", [lambda path, files: write_raw_tar(path, files), lambda path, files: write_zip(path, files)]
)
def test_a_table_inside_an_archive_and_one_beside_it_are_read(
    tmp_path: Path, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    source = write(tmp_path / "in.archive", {**IMAGES, "meta/labels.csv": FORMS["csv"]})
    labeling = Labeling(table="labels.csv", drop=("Not sure",))
    pack(source, tmp_path / "one", labeling=labeling)
    (tmp_path / "labels.csv").write_bytes(FORMS["csv"])
    pack(source, tmp_path / "two", labeling=Labeling(table=str(tmp_path / "labels.csv"), drop=("Not sure",)))
    assert labels_of(tmp_path / "one") == labels_of(tmp_path / "two") == EXPECTED


def test_rows_without_an_image_and_images_without_a_row_are_told(tmp_path: Path) -> None:
    rows = [*ROWS[:4], ("99", "cat"), ("", "dog")]
    source = write_files(tmp_path / "in", {**IMAGES, "labels.csv": table(rows)})
    report = pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv"))
    assert report.num_samples == {"labeled": 3, "unlabeled": 3}
    assert "3 images have no row in labels.csv, so they have no label" in report.notes
    assert "2 rows of labels.csv name no image; they are listed" in report.notes
    assert left_out_of(report.out)["labels.csv: 99 (line 5)"] == "no such image"


def test_images_without_a_label_are_no_val_images(tmp_path: Path) -> None:
    """As with one folder of images and a table per split."""
    source = write_files(
        tmp_path / "in", {**IMAGES, "val.csv": table(ROWS[:3]), "train.csv": table(ROWS[:1] + ROWS[3:5])}
    )
    out = tmp_path / "out"
    assert pack(source, out, split="labeled", labeling=Labeling(table="train.csv")).num_samples == {
        "labeled": 2,
        "unlabeled": 4,
    }
    report = pack(source, out, split="val", labeling=Labeling(table="val.csv"))
    assert (report.num_samples, report.num_moved) == ({"val": 2}, 2)
    assert left_out_of(report.out)["images/4.png"] == "it has no label"
    data = Data(root=out)
    check_disjoint({split: open_split(data, split) for split in ("labeled", "unlabeled", "val")})


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "own"])
def test_test_images_without_a_label_are_in_no_split(tmp_path: Path, typed: bool) -> None:
    """In the pool they would be seen before the test, whether `--split test` was typed or a column says so."""
    head, train = ("image", "label", "part"), [("0.png", "cat", "train"), ("1.png", "dog", "train")]
    test = [("2.png", "cat", "test"), ("3.png", "dog", "test"), ("4.png", "", "test"), ("5.png", "Not sure", "test")]
    files = {name: IMAGES[name] for name in sorted(IMAGES)[2 if typed else 0 :]}
    files["t.csv"] = table([head, *test] if typed else [head, *train, *test])
    labeling = Labeling(table="t.csv", drop=("Not sure",), split_column=None if typed else "part")
    source = write_files(tmp_path / "in", files)
    report = pack(source, tmp_path / "out", split="test" if typed else None, labeling=labeling)
    assert report.num_samples.get("test") == 2
    assert "unlabeled" not in report.num_samples
    assert "2 images of val or test have no label, so they are left out and listed" in report.notes
    assert {name for name, why in left_out_of(report.out).items() if why == "it has no label"} == {
        "images/4.png",
        "images/5.png",
    }


def test_of_equal_val_images_the_one_with_a_label_stays(tmp_path: Path) -> None:
    images = {"a.png": IMAGES["images/0.png"], "b.png": IMAGES["images/0.png"], "c.png": IMAGES["images/1.png"]}
    rows = [("image", "label"), ("b.png", "cat"), ("c.png", "dog")]
    source = write_files(tmp_path / "in", {**images, "t.csv": table(rows)})
    labeling = Labeling(table="t.csv")
    report = pack(source, tmp_path / "out", split="val", labeling=labeling, skip_duplicates=True)
    assert (report.num_samples, report.conflicts) == ({"val": 2}, ())
    assert open_split(Data(root=report.out), "val").labels.tolist() == [0, 1]
    report = pack(source, tmp_path / "all", split="val", labeling=labeling)
    assert (report.num_samples, report.duplicates) == ({"val": 2}, None), "the other one is no image of the split"


@pytest.mark.parametrize(
    ("files", "rows", "message"),
    [
        ({"a/1.png": 1, "b/1.png": 2}, [("1.png", "cat")], r"line 2: 1\.png may be a/1\.png or b/1\.png"),
        ({"1.png": 1, "2.png": 2}, [("1", "cat"), ("1.png", "dog")], r"line 3: 1\.png is dog here and cat in line 2"),
        ({"1.png": 1, "2.png": 2}, [("1", "cat"), ("2", "cat")], r"labels of 1 class, `cat`"),
        ({"1.png": 1, "2.png": 2}, [("1", "cat"), ("2",)], r"line 3: 1 fields instead of 2"),
        ({"a/1.png": 1, "a/2.png": 2}, [("b/1.png", "cat")], r"no column of .*names images of this SOURCE"),
    ],
    ids=["folders", "two labels", "one class", "short line", "another folder"],
)
def test_a_row_that_is_not_clear_is_an_error_that_names_it(
    tmp_path: Path, files: dict[str, int], rows: list[tuple[str, ...]], message: str
) -> None:
    images = {name: png(number) for name, number in files.items()}
    source = write_files(tmp_path / "in", {**images, "labels.csv": table([("image", "label"), *rows])})
    with pytest.raises(UserError, match=message):
        pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_path_tells_images_of_one_name_apart(tmp_path: Path) -> None:
    names = ImageNames(["1.png", "a/1.png", "b/a/1.jpg", "c/2.png"])
    assert names.find("a/1.png") == ("a/1.png",)
    assert names.find("1.png") == ("1.png",)
    assert names.find("b/a/1") == ("b/a/1.jpg",)
    assert names.find("x/c/2.PNG") == ("c/2.png",)
    assert ImageNames(["1.jpg", "1.png"]).find("1") == ("1.jpg", "1.png")
    assert names.find("d/2.png") == names.find("3") == names.find("") == names.find("/") == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no rows"),
        (b"image,label\n", "has no rows"),
        (b"a,a\n1,2\n", "two columns called `a`"),
        (b"image,label\n" + b"x" * 200_000 + b",cat\n", "field larger than field limit"),
        (b'{"a": 1}\n[2]\n', "line 2, is no JSON object"),
        (b'{"a": 1}\n{"a"\n', "line 2, is not JSON"),
        (b"PK\0\0", "is no text"),
    ],
)
def test_what_is_no_table_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_table("labels.csv", data)


def test_a_table_without_names_of_columns_is_refused(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {**IMAGES, "labels.csv": table(ROWS[1:5])})
    with pytest.raises(UserError, match=r"labels\.csv has no names of columns"):
        pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv"))


def test_latin_1_is_read_and_told(tmp_path: Path) -> None:
    rows = "image,label\n0,caf\u00e9\n1,dog\n".encode("latin-1")
    report = pack(
        write_files(tmp_path / "in", {**IMAGES, "l.csv": rows}), tmp_path / "out", labeling=Labeling(table="l.csv")
    )
    assert report.classes == ("caf\u00e9", "dog")
    assert any("read as Latin-1" in note for note in report.notes)


def test_columns_in_doubt_are_refused_with_a_command_that_names_them(tmp_path: Path) -> None:
    rows = [("id", "genus", "species"), ("0", "felis", "catus"), ("1", "canis", "lupus"), ("2", "canis", "latrans")]
    source = write_files(tmp_path / "in", {**IMAGES, "labels.csv": table(rows)})
    with pytest.raises(UserError, match=r"columns id, first, second, and it is not clear") as caught:
        pack(
            write_files(tmp_path / "other", {**IMAGES, "t.csv": table([("id", "first", "second"), *rows[1:]])}),
            tmp_path / "out",
            labeling=Labeling(table="t.csv"),
        )
    run_advice(caught.value)
    assert read_manifest(tmp_path / "out").classes == ("canis", "felis")
    assert len(pack(source, tmp_path / "three", labeling=Labeling(table="labels.csv")).classes) == 3
    with pytest.raises(UserError, match=r"--label-column lable: .*columns are id, genus, species"):
        pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv", label_column="lable"))


def test_two_columns_that_name_images_are_refused_with_a_command(tmp_path: Path) -> None:
    rows = [("left", "right", "label"), ("0", "1", "cat"), ("2", "3", "dog")]
    source = write_files(tmp_path / "in", {**IMAGES, "labels.csv": table(rows)})
    with pytest.raises(UserError, match="left and right both name images") as caught:
        pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv"))
    run_advice(caught.value)
    assert labels_of(tmp_path / "out") == {"0": "cat", "2": "dog"}


def test_a_column_per_class_is_read_unless_a_row_is_of_several(tmp_path: Path) -> None:
    rows = [("image", "cat", "dog"), ("0", "1", "0"), ("1", "0", "1"), ("2", "0", "0")]
    source = write_files(tmp_path / "in", {**IMAGES, "labels.csv": table(rows)})
    pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv"))
    assert labels_of(tmp_path / "out") == {"0": "cat", "1": "dog"}
    write_files(source, {"labels.csv": table([*rows, ("3", "1", "1")])})
    with pytest.raises(UserError, match=r"line 5 is of 2 classes \(cat, dog\)"):
        pack(source, tmp_path / "two", labeling=Labeling(table="labels.csv"))


SPLITS = [
    ("image", "label", "split"),
    *((str(n), "cat" if n % 2 else "dog", ["train", "Validation", "TEST", ""][n % 4]) for n in range(80)),
]
MANY = {f"{number}.png": png(number) for number in range(80)}


def test_a_split_column_is_taken_when_it_is_named_and_told_when_it_is_not(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {**MANY, "labels.csv": table(SPLITS)})
    report = pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv", split_column="split"))
    assert report.num_samples == {"labeled": 40, "val": 20, "test": 20}
    told = "without one (20 labeled), train (20 labeled), test (20 test), validation (20 val)"
    assert f"SOURCE has splits of its own: {told}" in report.notes
    carve = Carve(num_labeled=10, val_fraction=None)
    labeling = Labeling(table="labels.csv", split_column="split")
    report = pack(source, tmp_path / "carved", labeling=labeling, carve=carve)
    assert report.num_samples == {"labeled": 10, "unlabeled": 30, "val": 20, "test": 20}
    carve = Carve(num_labeled=10, val_fraction=0.25, test_fraction=0.25)
    report = pack(source, tmp_path / "own", labeling=Labeling(table="labels.csv"), carve=carve)
    assert report.num_samples == {"labeled": 10, "unlabeled": 30, "val": 20, "test": 20}
    assert any("--split-column split takes the splits" in note for note in report.notes)
    assert set(labels_of(tmp_path / "own", "test")) != set(labels_of(tmp_path / "out", "test"))


def test_splits_that_are_not_clear_are_refused(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {**MANY, "labels.csv": table(SPLITS)})
    labeling = Labeling(table="labels.csv", split_column="split")
    with pytest.raises(UserError, match=r"has a val split of its own; leave --val-fraction 0\.2 out"):
        pack(source, tmp_path / "out", labeling=labeling, carve=Carve(num_labeled=4, val_fraction=0.2))
    with pytest.raises(UserError, match="leave --split labeled out"):
        pack(source, tmp_path / "out", labeling=labeling, split="labeled")
    write_files(source, {"labels.csv": table([*SPLITS[:-1], ("79", "cat", "fold3")])})
    with pytest.raises(UserError, match=r"labels\.csv, line 81 has the split 'fold3'"):
        pack(source, tmp_path / "out", labeling=labeling)


def test_an_absent_table_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {**IMAGES, "meta/labels.tsv": FORMS["tsv"]})
    with pytest.raises(UserError, match=re.escape("there are meta/labels.tsv")):
        pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv"))
