"""The images of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from pipeline.config.base import NonNegative, Positive, Section, operational
from pipeline.remote import Place, Remote, place

Split = Literal["labeled", "unlabeled", "val", "test"]
SPLITS: tuple[Split, ...] = ("labeled", "unlabeled", "val", "test")


def _place(value: Any) -> Any:
    """A path as a shell would read it, where `~` is the user's folder, or an address."""
    if value is None:
        return None
    if not isinstance(value, str | Path | Remote):
        raise ValueError("a path is needed")
    found = place(value)
    try:
        return found.expanduser() if isinstance(found, Path) else found
    except RuntimeError as error:
        raise ValueError(f"there is no home folder for {value}; write the path in full") from error


def _path(value: Any) -> Any:
    """A path on this machine."""
    found = _place(value)
    if isinstance(found, Remote):
        raise ValueError(f"{value} is an address, from which nothing is read here; download it and name the file")
    return found


def _places(value: Any) -> Any:
    """One place is a list of one."""
    values = [value] if isinstance(value, str | Path | Remote) else value
    return [_place(each) for each in values] if isinstance(values, list | tuple) else values


APath = Annotated[Path, BeforeValidator(_path)]
APlace = Annotated[
    Place,
    PlainValidator(_place),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "path"}),
]
Places = Annotated[tuple[APlace, ...], BeforeValidator(_places)]


class Data(Section):
    """The images of a run: a packed folder, WebDataset tars that others made, or both. They may also lie in an object
    store: s3://BUCKET/FOLDER, gs:// or az://."""

    root: APlace | None = operational(None)
    """A folder that `selftrain pack` wrote; its manifest names the splits."""
    labeled: Places = operational(())
    """More labeled tars, folders of tars, packed folders, or patterns such as `shards/*.tar`. Tars need `classes` if
    there is no `root`."""
    unlabeled: Places = operational(())
    """More unlabeled tars, folders of tars, or packed folders."""
    val: Places = operational(())
    """More validation tars, folders of tars, or packed folders."""
    test: Places = operational(())
    """More test tars, folders of tars, or packed folders. A model sees them only in the last stage of a run."""
    classes: APlace | None = operational(None)
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
    remote_cache_gb: Annotated[float, Field(gt=0)] = operational(50.0)
    """Gigabytes of shards from object stores that are kept in `cache_dir`; those that were read least recently are
    removed for others. Raise it if the shards of an epoch do not fit, which then are fetched in every epoch."""
    decode_workers: NonNegative = operational(0)
    """Number of threads that decode images. 0 means one per core that the process may use. Lower it if others use the
    machine too."""
