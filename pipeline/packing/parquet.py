"""Parquet files of images, as the Hugging Face hub has them: a column of image bytes, and labels with names.

Only the row group that is asked for is held in memory, and the one before it. Images are asked for in the order of the
files, once to check them and once per shard that is written, since a shard takes images from everywhere.
"""

from __future__ import annotations

import bisect
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.config import Split
from pipeline.errors import UserError
from pipeline.packing.item import SPLIT_WORDS, Item, Told, normal

PARQUET = ".parquet"
MAGIC = b"PAR1"
_WORD = re.compile(r"[A-Za-z]+")
_GROUPS_HELD = 2
_LABEL_COLUMNS = ("label", "labels", "class", "fine_label")


class ParquetImages:
    """The rows of Parquet files as files of a SOURCE, called `FILE/ROW`, without `.parquet`.

    Raises:
        UserError: a file is damaged, or it is not clear which column has the images.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        self._root, self._files = root, tuple(sorted(names))
        self._called = {name.removesuffix(PARQUET): name for name in self._files}
        self._tables: dict[str, Any] = {}
        self._held: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = threading.Lock()
        for name in self._files:
            try:
                self._tables[name] = ParquetFile(root / name)
            except (ArrowException, OSError, ValueError) as error:
                raise UserError(f"{root / name} cannot be read as Parquet: {error}; download it again") from error
        self._features = [_features(table) for table in self._tables.values()]
        self._image = self._image_column()
        self._starts = {name: _starts(table) for name, table in self._tables.items()}

    def _image_column(self) -> str:
        first, table = self._features[0], next(iter(self._tables.values()))
        found = [one for one, feature in first.items() if feature.get("_type") == "Image"]
        found = found or [field.name for field in table.schema_arrow if _holds_bytes(field.type)]
        usual = [one for one in found if one in ("image", "img")]
        if len(found) != 1 and len(usual) != 1:
            columns = ", ".join(table.schema_arrow.names)
            raise UserError(
                f"{self._root}: {len(found)} columns of the Parquet files may hold images ({columns}); keep one, "
                "called image, with the bytes of a file or {bytes, path}"
            )
        return (usual if len(found) != 1 else found)[0]

    def names(self) -> Iterator[str]:
        """The images, in the order of files and rows."""
        for called, name in self._called.items():
            yield from (f"{called}/{row:07d}" for row in range(self._starts[name][-1]))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in order."""
        return tuple(self._root / name for name in self._files)

    def read(self, name: str, limit: int, *, cut: bool = False) -> bytes:
        """The bytes of an image. As `archives.Read`."""
        called, _, text = name.rpartition("/")
        file, row = self._called[called], int(text)
        group = bisect.bisect_right(self._starts[file], row) - 1
        value = self._group(file, group)[row - self._starts[file][group]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise UserError(
                f"{name} has no bytes of an image, but at most a path; download the files with their images"
            )
        if len(data) > limit and not cut:
            raise UserError(f"{name} is larger than {limit >> 20} MiB; shrink it")
        return data[:limit]

    def _group(self, file: str, group: int) -> Any:
        from pyarrow import ArrowException

        with self._lock:
            key = file, group
            if key not in self._held:
                try:
                    column = self._tables[file].read_row_group(group, columns=[self._image]).column(0)
                except (ArrowException, OSError) as error:
                    raise UserError(f"{self._root / file} is damaged: {error}; download it again") from error
                self._held[key] = column
                while len(self._held) > _GROUPS_HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            return self._held[key]

    def labels(self, column: str | None, numbered: Sequence[str], again: str) -> list[str | None]:
        """The label of every row; None where there is none, or a negative number.

        Args:
            column: Which column has them; None if it is clear.
            numbered: What numbers mean if the files do not say it, such as the lines of a --classes file.
            again: The command that was typed, for messages.

        Raises:
            UserError: it is not clear which column has labels, or numbers have no names.
        """
        labels: list[str | None] = []
        for (name, table), features in zip(self._tables.items(), self._features, strict=True):
            chosen = self._label_column(name, table, features, column, again)
            names = features.get(chosen, {}).get("names") or numbered
            for value in table.read(columns=[chosen]).column(0).to_pylist():
                labels.append(_label(value, names, f"{self._root / name}: column {chosen}"))
        return labels

    def _label_column(self, name: str, table: Any, features: dict[str, Any], column: str | None, again: str) -> str:
        columns = self._others(table)
        if column is not None and column not in columns:
            raise UserError(
                f"--label-column {column}: {self._root / name} has no such column; there are {', '.join(columns)}"
            )
        named = [one for one in columns if features.get(one, {}).get("_type") == "ClassLabel"]
        usual = [one for one in columns if one in _LABEL_COLUMNS[:3]]
        for found in ([column] if column else [], named, usual, columns):
            if len(found) == 1:
                return found[0]
        if not columns:
            raise UserError(f"{self._root / name} has no column of labels; take all without, with --split unlabeled")
        likely = next((one for one in _LABEL_COLUMNS if one in columns), (named or columns)[0])
        raise UserError(
            f"{self._root / name} has the columns {', '.join(columns)}, and it is not clear which has the labels; say "
            f"it, such as\n  {again} --label-column {likely}"
        )

    def column_of_splits(self, column: str) -> list[tuple[Split | None, str]]:
        """The split that a column says of every row, with the word that does; None where it says nothing.

        Raises:
            UserError: a file has no such column, or it holds something else.
        """
        found: list[tuple[Split | None, str]] = []
        for (name, table), features in zip(self._tables.items(), self._features, strict=True):
            if column not in (columns := self._others(table)):
                there = ", ".join(columns)
                raise UserError(f"--split-column {column}: {self._root / name} has no such column; there are {there}")
            names, where = features.get(column, {}).get("names") or (), f"{self._root / name}: column {column}"
            for value in table.read(columns=[column]).column(0).to_pylist():
                word = (_label(value, names, where) or "").lower()
                if word and word not in SPLIT_WORDS:
                    raise UserError(
                        f"--split-column: {where} holds {word!r}, which is no split; write train, val, test, unlabeled "
                        "or nothing"
                    )
                found.append((SPLIT_WORDS.get(word), word))
        return found

    def split_like(self) -> str | None:
        """A column of texts whose values are names of splits, as far as the first rows tell."""
        table = next(iter(self._tables.values()))
        for column in self._others(table):
            if table.num_row_groups and str(table.schema_arrow.field(column).type) in ("string", "large_string"):
                some = table.read_row_group(0, columns=[column]).column(0).to_pylist()
                if some and all(value and value.lower() in SPLIT_WORDS for value in some):
                    return column
        return None

    def _others(self, table: Any) -> list[str]:
        return [one for one in table.schema_arrow.names if one != self._image]

    def splits(self) -> list[tuple[Split | None, str]]:
        """The split that the name of each row's file tells, with the word that does; all or none.

        Raises:
            UserError: the names of some files tell it.
        """
        found = {name: _split_of(name) for name in self._files}
        silent = [name for name, (split, _) in found.items() if split is None]
        if silent and len(silent) < len(found):
            raise UserError(
                f"{self._root}: {silent[0]} does not say in its name of which split it is, as others do; pack "
                "each file by itself with --split"
            )
        return [found[name] for name in self._files for _ in range(self._starts[name][-1])]


def label_by_parquet(
    parquet: ParquetImages,
    items: Sequence[Item],
    column: str | None,
    numbered: Sequence[str],
    again: str,
    *,
    split_column: str | None = None,
) -> Told:
    """Give images the labels that Parquet files say, and the splits, by the names of files and a column.

    The arguments are those of `ParquetImages.labels`, and the column of splits; None to use none.

    Raises:
        UserError: also if that column says otherwise than the name of a file.
    """
    labels, splits = parquet.labels(column, numbered, again), parquet.splits()
    own = parquet.column_of_splits(split_column) if split_column else [(None, "")] * len(splits)
    said = dict(zip(parquet.names(), zip(labels, splits, own, strict=True), strict=True))
    told = []
    for item in items:
        label, (split, origin), (inside, word) = said[item.name]
        if inside and split and inside != split:
            raise UserError(
                f"--split-column {split_column}: {item.name} has the split {word!r}, and its file is called after "
                f"{origin}; leave --split-column out to take the splits of the files, or rename the file"
            )
        told.append(replace(item, class_name=label, split=inside or split, origin=word or origin))
    if split_column is None and (unused := parquet.split_like()):
        note = f"its column {unused} was not used; --split-column {unused} takes the splits from it"
        return Told(told, notes=(note,))
    return Told(told)


def _features(table: Any) -> dict[str, Any]:
    """What the `datasets` library has written about the columns; empty if it has not."""
    raw = (table.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        found = json.loads(raw)["info"]["features"] if raw else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _starts(table: Any) -> list[int]:
    """The first row of each row group and, last, the number of rows."""
    starts = [0]
    for group in range(table.num_row_groups):
        starts.append(starts[-1] + table.metadata.row_group(group).num_rows)
    return starts


def _label(value: object, names: Sequence[str], where: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return normal(value.strip()) or None
    if not isinstance(value, int):
        raise UserError(f"{where} holds {value!r}, which is no label; choose another with --label-column")
    if value < 0:
        return None
    if value >= len(names):
        known = f"{len(names)} names" if names else "no names"
        raise UserError(
            f"{where} holds the number {value}, and there are {known} for such numbers; write the names into a file, "
            "one per line in the order of the numbers, and give it as --classes"
        )
    return normal(names[value])


def _split_of(name: str) -> tuple[Split | None, str]:
    """As of `data/train-00000-of-00002.parquet` or `default/train/0000.parquet`."""
    path = PurePosixPath(name)
    for part in (path.stem, *reversed(path.parts[:-1])):
        words = [word for word in _WORD.findall(part) if word.lower() in SPLIT_WORDS]
        if len({SPLIT_WORDS[word.lower()] for word in words}) == 1:
            return SPLIT_WORDS[words[0].lower()], words[0]
    return None, ""
