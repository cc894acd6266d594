"""Where the images are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.config.base import NonNegative, Positive, Section, operational

Split = Literal["labeled", "unlabeled", "val", "test"]
SPLITS: tuple[Split, ...] = ("labeled", "unlabeled", "val", "test")


class Data(Section):
    """Where the images are: in a packed folder, in WebDataset tars that others made, or in both."""

    root: Path | None = operational(None)
    """A folder written by `selftrain pack`; its manifest names the splits."""
    labeled: tuple[Path, ...] = operational(())
    """More labeled tars, folders of tars, or packed folders. Tars need `classes` when there is no `root`."""
    unlabeled: tuple[Path, ...] = operational(())
    """More unlabeled tars, folders of tars, or packed folders."""
    val: tuple[Path, ...] = operational(())
    """More validation tars, folders of tars, or packed folders."""
    test: tuple[Path, ...] = operational(())
    """More test tars, folders of tars, or packed folders. A model sees them in the run's last stage only."""
    classes: Path | None = operational(None)
    """A text file with one class name per line, for tars without a manifest. Line numbers are the class ids."""
    window_shards: Positive = 64
    """Shards are permuted in each epoch, then samples within windows of this many shards. Lower it to save memory with
    very many shards."""
    bad_images: Literal["error", "skip"] = "error"
    """What to do with images that cannot be decoded: stop, or count and skip them."""
    cache: Literal["auto", "always", "never"] = operational("auto")
    """Whether to keep decoded uint8 images in memory-mapped files. `auto` does so while they take under 25% of
    memory."""
    cache_dir: Path | None = operational(None)
    """Folder of decoded images and of indexes of read-only tars. The default is `selftrain` below `$XDG_CACHE_HOME`, or
    below `~/.cache`."""
    decode_workers: NonNegative = operational(0)
    """Threads that decode images. 0 means one per core that the process may use."""
