"""What the pixels of a data set are like: their means, deviations and covariances, of one pass over its images.

All sums are of whole numbers in float64, which is exact below 2^53: they depend neither on the order nor on threads.
Shapes: S the side of the images, D = 3 S^2 their numbers, in the order of [S, S, 3].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F64Array
from pipeline.shards.reader import Reader
from pipeline.threads import read_ahead

_BATCH = 256
WHITENING_EPS = 0.01
"""What is added to each variance in whitening, as a share of their mean."""


@dataclass(frozen=True)
class Statistics:
    """Sums over N images of values in 0..255."""

    num_images: int
    total: F64Array
    """[S, S, 3]: the sum of the images."""
    colors: F64Array
    """[3, 3]: the sums of products of R, G and B, over all pixels."""
    products: F64Array | None = None
    """[D, D]: the sums of products of the numbers of an image; None if they were not asked for."""

    @property
    def mean_image(self) -> F64Array:
        """The mean of the images in 0..1, [S, S, 3] (Krizhevsky 2012, section 2)."""
        return np.asarray(self.total / (255 * self.num_images))

    @property
    def mean(self) -> F64Array:
        """The mean of each channel in 0..1, [3]."""
        return np.asarray(self.mean_image.mean((0, 1)))

    @property
    def color_covariance(self) -> F64Array:
        """The covariance of R, G and B in 0..1 over all pixels, [3, 3]."""
        num_pixels = self.num_images * self.total.shape[0] * self.total.shape[1]
        return np.asarray(self.colors / (255**2 * num_pixels) - np.outer(self.mean, self.mean))

    @property
    def std(self) -> F64Array:
        """The standard deviation of each channel in 0..1, [3]."""
        return np.asarray(np.sqrt(self.color_covariance.diagonal()))

    @property
    def components(self) -> F64Array:
        """The eigenvectors of the covariance of the colors, one per column, times their eigenvalues, [3, 3].

        Eigenvalues are variances of colors in 0..1, as in the published ones of ImageNet: 0.2175, 0.0188, 0.0045.
        """
        values, vectors = np.linalg.eigh(self.color_covariance)
        return np.asarray(vectors * values)

    @property
    def whitening(self) -> F64Array:
        """The symmetric matrix [D, D] that decorrelates images in 0..1, from which the mean image was subtracted.

        It rotates an image to the principal components U of the images, divides each by the root of its variance, and
        rotates back, so that convolutions still find neighbours side by side: U (Lambda + eps)^(-1/2) U^T (Krizhevsky
        2009, appendix A). `eps` is a hundredth of the mean variance of a number, so that no direction grows more than
        ten times as much as it would by dividing each number by its deviation; with fewer images than numbers, some
        directions have no variance at all.
        """
        assert self.products is not None, "the products were not asked for"
        mean = self.mean_image.ravel()
        values, vectors = np.linalg.eigh(self.products / (255**2 * self.num_images) - np.outer(mean, mean))
        scales = 1 / np.sqrt(values.clip(0) + WHITENING_EPS * values.mean())
        return np.asarray((vectors * scales) @ vectors.T)


def measure(
    reader: Reader, num_images: int, progress: Callable[[int], None] = lambda done: None, *, products: bool = False
) -> Statistics:
    """The statistics of all images of a data set as its reader gives them, square ones of one size.

    Args:
        reader: Reads the images.
        num_images: The number of images N.
        progress: It is called with the number of images that are done.
        products: Whether to sum the products [D, D] too, which costs D^2 operations per image.

    Raises:
        UserError: an image is damaged.
    """
    total, colors, both = None, np.zeros((3, 3)), None
    starts = range(0, num_images, _BATCH)
    batches = (np.arange(start, min(start + _BATCH, num_images), dtype=np.int64) for start in starts)
    for rows, images in read_ahead(batches, reader.read):
        values = images.astype(np.float64)
        total = values.sum(0) + (0 if total is None else total)
        pixels = values.reshape(-1, 3)
        colors += pixels.T @ pixels
        if products:
            flat = values.reshape(len(values), -1)
            both = flat.T @ flat + (0 if both is None else both)
        progress(int(rows[-1]) + 1)
    assert total is not None, "a split has images"
    return Statistics(num_images, total, colors, both)
