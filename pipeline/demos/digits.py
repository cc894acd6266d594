"""Pack the digits that come with scikit-learn: the data of `make demo`.

    python -m pipeline.demos.digits shards/digits

1,797 real 8x8 scans of handwritten digits (Alpaydin and Kaynak 1998), carved into 100 labeled images, val, test and an
unlabeled rest.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import EXIT_USER_ERROR, UserError
from pipeline.packing.carve import Carve
from pipeline.packing.outcome import PackReport
from pipeline.packing.pack import SHARD_SIZE, pack

NUM_LABELED = 100
VAL_FRACTION = 0.2
TEST_FRACTION = 0.25


def load_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The grey images, uint8 [1797, 8, 8], and their labels, int64 [1797].

    Raises:
        UserError: scikit-learn, which only the demo needs, is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise UserError("the digits are scikit-learn's, which is not installed: pip install selftrain[demo]") from error
    digits = datasets.load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target  # levels are 0 to 16


def pack_digits(
    out: Path, *, num_labeled: int = NUM_LABELED, shard_size: int = SHARD_SIZE, seed: int = 0
) -> PackReport:
    """Write the digits as PNG files and pack them into `out`; nothing is added when they are there already."""
    images, labels = load_digits()
    with tempfile.TemporaryDirectory(prefix="selftrain-") as folder:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = Path(folder) / "digits" / str(label) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        carve = Carve(num_labeled=num_labeled, val_fraction=VAL_FRACTION, test_fraction=TEST_FRACTION, seed=seed)
        return pack(Path(folder) / "digits", out, carve=carve, shard_size=shard_size)


if __name__ == "__main__":
    try:
        report = pack_digits(Path(sys.argv[1] if len(sys.argv) > 1 else "shards/digits"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    added = ", ".join(f"{count} {split}" for split, count in report.num_samples.items())
    print(f"{report.out}: {added or 'packed before'}")
