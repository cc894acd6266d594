"""The images of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from pipeline.config.base import NonNegative, Positive, Section, operational

Split = Literal["labeled", "unlabeled", "val", "test"]
SPLITS: tuple[Split, ...] = ("labeled", "unlabeled", "val", "test")


def _path(value: Any) -> Any:
    """A path as a shell would read it, where `~` is the user's folder."""
    if value is None:
        return None
    if not isinstance(value, str | Path):
        raise ValueError("a path is needed")
    if "://" in str(value):
        raise ValueError(f"{value} is an address, from which nothing is read; download it and name the file")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"there is no home folder for {value}; write the path in full") from error


def _paths(value: Any) -> Any:
    """One path is a list of one."""
    values = [value] if isinstance(value, str | Path) else value
    return [_path(each) for each in values] if isinstance(values, list | tuple) else values


APath = Annotated[Path, BeforeValidator(_path)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_paths)]


class Data(Section):
    """The images of a run: a packed folder, WebDataset tars that others made, or both."""

    root: APath | None = operational(None)
    """A folder that `selftrain pack` wrote; its manifest names the splits."""
    labeled: Paths = operational(())
    """More labeled tars, folders of tars, packed folders, or patterns such as `shards/*.tar`. Tars need `classes` if
    there is no `root`."""
    unlabeled: Paths = operational(())
    """More unlabeled tars, folders of tars, or packed folders."""
    val: Paths = operational(())
    """More validation tars, folders of tars, or packed folders."""
    test: Paths = operational(())
    """More test tars, folders of tars, or packed folders. A model sees them only in the last stage of a run."""
    classes: APath | None = operational(None)
    """A text file with one class name per line, for tars without a manifest. Line numbers are the class ids."""
    window_shards: Positive = 64
    """In each epoch shards are permuted, and then samples within windows of this many shards. Lower it to save memory
    with very many shards."""
    bad_images: Literal["error", "skip"] = "error"
    """What to do with images that cannot be decoded: `error` stops, `skip` counts them and leaves them out. Look at
    some of them before you skip them."""
    cache: Literal["auto", "always", "never"] = operational("auto")
    """Whether to keep decoded uint8 images in memory-mapped files. `auto` keeps them if reading them takes under half
    of the time of decoding, and they take under a quarter of what is free on the disk; the log says how it decides. Set
    `never` if the disk has no room for them. Crops of `crop: resized` and `crop: scale` are never kept."""
    cache_dir: APath | None = operational(None)
    """Folder for decoded images and for indexes of read-only tars. The default is `selftrain` below `$XDG_CACHE_HOME`,
    or below `~/.cache`."""
    decode_workers: NonNegative = operational(0)
    """Number of threads that decode images. 0 means one per core that the process may use. Lower it if others use the
    machine too."""
