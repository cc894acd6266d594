"""Which labels are classes: the others become strangers in the pool, or are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.images import class_files, left_out_of, png, write_files

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.labeling import Labeling, join_names, split_names
from pipeline.packing.pack import pack
from pipeline.shards.dataset import open_split


def test_labels_that_are_no_classes_become_strangers_or_are_left_out(tmp_path: Path) -> None:
    rows = [("image", "label"), *((str(n), ["cat", "dog", "Other", "owl, snowy"][n % 4]) for n in range(80))]
    text = "\n".join(",".join(f'"{value}"' for value in row) for row in rows).encode()
    source = write_files(
        tmp_path / "in", {**{f"{number}.png": png(number) for number in range(80)}, "labels.csv": text}
    )
    carve = Carve(num_labeled=4, val_fraction=0.2, test_fraction=0.2)
    reports = {
        name: pack(source, tmp_path / name, carve=carve, labeling=Labeling(table="labels.csv", **kwargs))  # type: ignore[arg-type]
        for name, kwargs in {
            "dropped": {"drop": ("Other", "owl, snowy")},
            "kept": {"keep": ("cat", "dog")},
            "left": {"drop": ("Other", "owl, snowy"), "leave_out": True},
        }.items()
    }
    assert reports["dropped"].num_samples == {"labeled": 4, "unlabeled": 60, "val": 8, "test": 8}
    assert reports["kept"].num_samples == reports["dropped"].num_samples
    assert reports["left"].num_samples == {"labeled": 4, "unlabeled": 20, "val": 8, "test": 8}
    assert left_out_of(tmp_path / "left")["2.png"] == "label `Other` is no class"
    pool = open_split(Data(root=tmp_path / "dropped"), "unlabeled")
    truth = pool.truth()
    assert truth is not None
    strangers = [key for shard in pool.shards for key, one in zip(shard.index.key, truth, strict=True) if one < 0]
    assert sorted(map(int, strangers)) == [n for n in range(80) if n % 4 > 1]
    all_of_them = pack(
        source,
        tmp_path / "all",
        carve=Carve(num_labeled="all", val_fraction=0.2),
        labeling=Labeling(table="labels.csv", keep=("cat", "dog")),
    )
    assert all_of_them.num_samples == {"labeled": 32, "unlabeled": 40, "val": 8}  # the pool has strangers only
    with pytest.raises(UserError, match=r"--drop: no image has the label `Othr`; did you mean `Other`"):
        pack(source, tmp_path / "x", labeling=Labeling(table="labels.csv", drop=("Othr",)))


def test_labels_that_look_like_no_classes_are_told_with_the_option_that_drops_them(tmp_path: Path) -> None:
    names = ("cat", "dog", "Not sure", "other")
    source = write_files(
        tmp_path / "in", {f"{name}/{n}.png": png(50 * k + n) for k, name in enumerate(names) for n in (1, 2)}
    )
    for given, told in (((), "'Not sure,other'"), (("cat",), "'cat,Not sure,other'"), (("other", "Not sure"), None)):
        report = pack(source, tmp_path / f"out{len(given)}", labeling=Labeling(drop=given))
        advice = [note for note in report.notes if "may be no class" in note]
        assert [f"--drop {told}," in note for note in advice] == ([True] if told else [])
    report = pack(source, tmp_path / "kept", labeling=Labeling(keep=names))
    assert not any("may be no class" in note for note in report.notes)


def test_one_of_several_sources_may_lack_some_of_the_labels(tmp_path: Path) -> None:
    labeling = Labeling(keep=("cat", "dog", "emu"))
    out = tmp_path / "out"
    pack(write_files(tmp_path / "in", class_files(3)), out, labeling=labeling)
    more = write_files(tmp_path / "more", {**class_files(2, "cat owl", first=9000)})
    report = pack(more, out, labeling=labeling)
    assert report.num_samples == {"labeled": 2, "unlabeled": 2}
    report = pack(more, tmp_path / "x", split="labeled", labeling=Labeling(keep=("cat", "owl", "ox")))
    assert any(note.startswith("--keep-classes: no image has the label `ox`") for note in report.notes)


@pytest.mark.parametrize("name", ["two\nlines", "bell\a"])
def test_a_label_that_no_classes_file_could_hold_is_refused(tmp_path: Path, name: str) -> None:
    rows = f'image,label\n0,"{name}"\n1,dog\n'.encode()
    source = write_files(tmp_path / "in", {"0.png": png(0), "1.png": png(1), "labels.csv": rows})
    with pytest.raises(UserError, match="unprintable name"):
        pack(source, tmp_path / "out", labeling=Labeling(table="labels.csv"))


def test_classes_of_folders_are_dropped_too(tmp_path: Path) -> None:
    files = {f"{name}/{n}.png": png(50 * k + n) for k, name in enumerate(("cat", "dog", "Other")) for n in range(3)}
    report = pack(write_files(tmp_path / "in", files), tmp_path / "out", labeling=Labeling(drop=("Other",)))
    assert (report.num_samples, report.classes) == ({"labeled": 6, "unlabeled": 3}, ("cat", "dog"))


def test_names_with_commas_stand_in_quotes() -> None:
    names = ("cat", "owl, snowy", 'the "best"')
    assert split_names(join_names(names)) == names
    assert split_names("Not sure, Skip,Other") == ("Not sure", "Skip", "Other")


@pytest.mark.parametrize(
    "kwargs",
    [{"drop": ("a",), "keep": ("b",)}, {"leave_out": True}, {"image_column": "x"}],
)
def test_options_that_say_nothing_are_refused(kwargs: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--"):
        Labeling(**kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["label_column", "split_column"])
def test_a_column_without_a_table_is_refused(tmp_path: Path, column: str) -> None:
    source = write_files(tmp_path / "in", class_files(2))
    with pytest.raises(UserError, match=f"--{column.replace('_', '-')} x is one of a table; name that"):
        pack(source, tmp_path / "out", labeling=Labeling(**{column: "x"}))  # type: ignore[arg-type]
