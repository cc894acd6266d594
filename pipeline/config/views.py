"""The views of training images: the weak one, and the strong one on top of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import NonNegative, Section, technique

Strength = Annotated[float, Field(ge=0, le=1)]


class ColorJitter(Section):
    """Jitter of colors (He 2019, Bag of Tricks, 2.1): brightness, contrast and saturation are scaled, in this order,
    each by a factor of the image's own."""

    brightness: Strength = 0.4
    """The factor on all values is uniform in 1 - brightness..1 + brightness."""
    contrast: Strength = 0.4
    """The factor on the distance to the image's mean luma is uniform in 1 - contrast..1 + contrast."""
    saturation: Strength = 0.4
    """The factor on the distance to the grey image is uniform in 1 - saturation..1 + saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The hue turns by a share of the color circle that is uniform in -hue..hue. Leave it at 0 where color tells
    classes apart; 0.1 is usual elsewhere."""


class WeakView(Section):
    """The weak view: a random crop, mirrored at random (AlexNet 4.1; Bag of Tricks 2.1)."""

    crop: Literal["pad", "resized", "scale", "none"] = technique("pad", off="none")
    """How the crop is drawn. `pad` pads by reflection and crops to the size before; it suits small images. `resized`
    crops a random area at a random aspect ratio out of the stored image, which it decodes each time; it suits
    photographs. `scale` resizes the shorter side to a random length and crops a square at a random place (scale jitter
    of VGG and ResNet), from the stored image too. `none` takes the centre square."""
    padding: NonNegative = 4
    """Pixels of reflection on each side with `crop: pad`. An eighth of the image's side is usual."""
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Smallest share of the image's area that `crop: resized` takes, at an aspect ratio between 3/4 and 4/3. Lower it
    to 0.08 for trainings of many epochs on large images."""
    min_scale: Annotated[float, Field(ge=1)] = technique(1.14, off=1.14)
    """Least length of the shorter side with `crop: scale`, in units of `image_size`. The default is the 256 of 224
    pixels of VGG and ResNet."""
    max_scale: Annotated[float, Field(ge=1)] = technique(2.14, off=2.14)
    """Greatest length of the shorter side with `crop: scale`, in units of `image_size`. The default is the 480 of 224
    pixels of ResNet; VGG has 512, which is 2.29. Lower it if objects fill the images."""
    color_jitter: ColorJitter | None = technique(None)
    """Scale brightness, contrast and saturation of each image at random; `{}` takes the factors 0.6 to 1.4 of Bag of
    Tricks. Without this section it is off."""
    pca_color: Annotated[float, Field(ge=0)] = technique(0.0, off=0.0)
    """Shift the color of each image along the principal components of the colors of the labeled images, by their
    variances times numbers from N(0, pca_color) (AlexNet 4.1). 0.1 is the paper's. 0 turns it off."""
    flip: bool = technique(True, off=False)
    """Mirror each image with probability 1/2. Turn it off where left and right mean something, as in digits and
    text."""

    @property
    def cuts_stored_images(self) -> bool:
        """Whether crops are cut from the stored images, each time anew."""
        return self.crop in ("resized", "scale")

    @model_validator(mode="after")
    def _scales_are_a_range(self) -> WeakView:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale is {self.min_scale}, above max_scale ({self.max_scale}); lower it")
        return self


class StrongView(Section):
    """The strong view on top of the weak one: RandAugment and cutout (Noisy Student, section 2)."""

    num_ops: NonNegative = technique(2, off=0)
    """RandAugment's N: the number of operations per image, which are drawn independently. 0 turns RandAugment off."""
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9.0
    """RandAugment's M in the units of the papers, where 10 is the nominal maximum. Lower it for short trainings."""
    cutout: NonNegative = technique(0, off=0)
    """Side, in pixels, of a grey square at a random place (DeVries 2017). Half of the image's side is usual. 0 turns
    cutout off."""
