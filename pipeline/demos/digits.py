"""scikit-learn's embedded digits as a packed folder: the data of `make demo`.

    python -m pipeline.demos.digits shards/digits

1,797 real 8x8 scans of handwritten digits (Alpaydin and Kaynak 1998), carved into 100 labeled images, val, test and an
unlabeled rest.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import EXIT_USER_ERROR, UserError
from pipeline.packing.carve import Carve
from pipeline.packing.pack import SHARD_SIZE, PackReport, pack

NUM_LABELED = 100
VAL_FRACTION = 0.2
TEST_FRACTION = 0.25


def pack_digits(
    out: Path, *, num_labeled: int = NUM_LABELED, shard_size: int = SHARD_SIZE, seed: int = 0
) -> PackReport:
    """Write the digits as PNG files and pack them into `out`; nothing is added when they are there already."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    with tempfile.TemporaryDirectory(prefix="selftrain-") as folder:
        for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            path = Path(folder) / "digits" / str(label) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.round(image * (255 / 16)).astype(np.uint8)  # scikit-learn's levels are 0 to 16
            Image.fromarray(pixels).save(path)
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
