"""The tars of a split: found where the config says, and checked before anything trains on them."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import Data, Split
from pipeline.errors import UserError
from pipeline.remote import Place, Remote
from pipeline.shards.index import Index, cache_folder
from pipeline.shards.manifest import MANIFEST, read_classes, read_manifest
from pipeline.shards.mirror import fetched, here, is_file, names_in
from pipeline.shards.truth import Truth, truth_of
from pipeline.shards.values import merge
from pipeline.stages.fingerprint import digest_file

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class SplitTar:
    """One tar of a split; of a packed folder, with what its manifest says."""

    name: str
    path: Path
    sha256: str | None = None
    num_samples: int | None = None
    truth: Truth | None = None
    moved: tuple[int, ...] = ()
    """Rows that count in another split."""


def find_tars(data: Data, split: Split) -> tuple[list[SplitTar], tuple[str, ...]]:
    """The tars of a split in the config's order, and the classes.

    Raises:
        UserError: a path leads to no tar, two tars have one name, or classes are missing or differ.
    """
    classes = read_classes(fetched(_file(data.classes, data))) if data.classes else ()
    tars: list[SplitTar] = []
    if data.root is not None:
        tars, classes = _packed(folder_of(data.root, data), split, classes, prefix="")
    extras: Sequence[Place] = getattr(data, split)
    for at in extras:
        one_file = at.name.endswith(".tar") or bool(set("*?[") & set(at.name))
        path = (_file if one_file else folder_of)(at, data)
        if (path / MANIFEST).exists():
            found, classes = _packed(path, split, classes, prefix=f"{path.resolve().name}-")
        elif path.is_dir():
            found = [_foreign(tar) for tar in _named(path, "*.tar")]
            if compressed := [tar.name for end in _COMPRESSED for tar in _named(path, f"*{end}")]:
                raise UserError(
                    f"data.{split}: {path} holds {', '.join(compressed[:3])}, and samples are read at their places; "
                    "decompress them (gunzip, zstd -d, ...), or move them away"
                )
        elif not path.exists() and set("*?[") & set(path.name):
            found = [_foreign(tar) for tar in _named(path.parent, path.name)]
        else:
            found = [_foreign(path)]
        if not found:
            raise UserError(f"data.{split}: {at} holds no {split} tars")
        tars += found
    if extras and not classes and split != "unlabeled":
        raise UserError(f"data.{split} names tars without a manifest; name their classes in data.classes, one per line")
    names: dict[str, Path] = {}
    for tar in tars:
        if tar.name in names:
            raise UserError(f"data.{split}: {names[tar.name]} and {tar.path} are both called {tar.name}; rename one")
        names[tar.name] = tar.path
    return tars, classes


def folder_of(at: Place, data: Data) -> Path:
    """The folder at a place of the config; of a remote one its mirror. Raises UserError as `mirror.here` does."""
    return here(at, cache_folder(data.cache_dir), data.remote_cache_gb)


def _file(at: Place, data: Data) -> Path:
    """The file at a place of the config; of a remote one where it comes to lie in the mirror of its folder."""
    return folder_of(at.parent, data) / at.name if isinstance(at, Remote) else at


def _named(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match, sorted."""
    names = names_in(folder) if folder.is_dir() else []
    return [folder / name for name in fnmatch.filter(names, pattern)]


def _packed(
    folder: Path, split: Split, classes: tuple[str, ...], prefix: str
) -> tuple[list[SplitTar], tuple[str, ...]]:
    manifest = read_manifest(folder)
    if split != "unlabeled" and classes and manifest.classes and classes != manifest.classes:
        wrong = next((a, b) for a, b in itertools.zip_longest(classes, manifest.classes) if a != b)
        raise UserError(
            f"{folder / MANIFEST} has other classes than data.classes or data.root: "
            f"{wrong[1]!r} instead of {wrong[0]!r}; pack both with one --classes file"
        )
    tars = []
    for entry in manifest.of_split(split):
        if entry.moved and not entry.num_used:
            continue
        path, truth = folder / f"{entry.name}.tar", truth_of(folder, entry, manifest.classes)
        tars.append(SplitTar(prefix + entry.name, path, entry.sha256, entry.num_samples, truth, entry.moved))
    return tars, classes or manifest.classes


def _foreign(tar: Path) -> SplitTar:
    if not is_file(tar):
        raise UserError(f"{tar} does not exist or is no tar; fix the path in the config")
    return SplitTar(f"{tar.resolve().parent.name}-{tar.stem}", tar)


def bad_samples(
    tar: SplitTar, index: Index, split: Split, classes: tuple[str, ...], *, skip: bool, verify: bool = False
) -> dict[int, str]:
    """The rows of a tar that cannot be used, with the reason. With `verify` the tar is read in full.

    Raises:
        UserError: the tar is not the one that was packed, a label is no id of the classes, or there are bad samples and
            they are not to be skipped.
    """
    if tar.sha256 is not None:
        _check_tar(tar, index, verify=verify)
    bad = dict(index.problems)
    if split != "unlabeled":
        _check_labels(tar, index, classes)
        for row in np.flatnonzero(index.label < 0).tolist():
            bad.setdefault(row, "no label (.cls)")
    if not skip and (bad or index.cut):
        lines = [f"sample {index.key[row]}: {why}" for row, why in sorted(bad.items())[:3]]
        lines += [index.cut] if index.cut else []
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        raise UserError(f"{tar.path}: {'; '.join(lines)}{more}; repair the tar, or set data.bad_images to skip")
    return bad


def _check_tar(tar: SplitTar, index: Index, *, verify: bool) -> None:
    actual, packed = digest_file(fetched(tar.path)) if verify else index.sha256, str(tar.sha256)
    if actual != packed:
        raise UserError(f"{tar.path} is not the shard that was packed: sha256 {actual[:12]}, manifest {packed[:12]}")
    if len(index) != tar.num_samples:
        raise UserError(
            f"{tar.path} holds {len(index)} samples, the manifest says {tar.num_samples}; restore the folder"
        )


def _check_labels(tar: SplitTar, index: Index, classes: tuple[str, ...]) -> None:
    """Refuse labels that are no ids of the classes, which would drop a class or rename all of them."""
    wrong = np.flatnonzero(index.label >= len(classes))
    if not len(wrong):
        return
    used = index.label[index.label >= 0]
    row, fix = int(wrong[0]), "name all classes in data.classes, one per line in the order of their ids"
    if used.min() == 1 and used.max() == len(classes):
        fix = "ids begin at 0 and these seem to begin at 1; make the tar again with each .cls one lower"
    raise UserError(
        f"{tar.path}: {len(wrong)} of {len(index)} samples have a label out of range, e.g. {index.key[row]} has "
        f"{index.label[row]}, and there are {len(classes)} classes (ids 0 to {len(classes) - 1}); {fix}"
    )


def check_values(split: Split, tars: Sequence[SplitTar], indexes: Sequence[Index]) -> None:
    """Refuse foreign tars whose values would be wrong pixels. Pack has asked the same of packed ones."""
    foreign = [index.survey for tar, index in zip(tars, indexes, strict=True) if tar.sha256 is None]
    survey = merge(foreign)
    if why := survey.mixture() or survey.dark_colours() or survey.unused_range():
        names = ", ".join(str(tar.path) for tar in tars if tar.sha256 is None)
        raise UserError(f"data.{split} ({names}): {why}; such options are those of `selftrain pack`")
