"""PolyInception modules (Zhang 2017, "PolyNet", section 3.1), which are polynomials in the Inception blocks of
Inception-ResNet-v2 (Szegedy 2016, "Inception-v4", figures 16, 17 and 19).

Shapes: B images, C channels of the stage, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

Kernel = int | tuple[int, int]
Branch = tuple[tuple[int, Kernel], ...]
"""The convolutions of a branch, one after another: channels and kernel."""
Norm = Callable[[int], nn.BatchNorm2d]

INCEPTIONS: tuple[tuple[Branch, ...], ...] = (
    (((32, 1), (48, 3), (64, 3)), ((32, 1), (32, 3)), ((32, 1),)),
    (((128, 1), (160, (1, 7)), (192, (7, 1))), ((192, 1),)),
    (((192, 1), (224, (1, 3)), (256, (3, 1))), ((192, 1),)),
)
"""The branches of the Inception block of each stage: A, B, C."""


class Kind(NamedTuple):
    """What a kind of module is a polynomial of."""

    family: str
    """`poly`: powers of one block. `mpoly`: a block after a block. `way`: blocks side by side."""
    num_paths: int
    """The terms of the polynomial beside the identity."""

    def holds(self, other: Kind) -> bool:
        """Whether the polynomial of this kind has all terms of another one's. I + F is a part of every kind."""
        return self.num_paths >= other.num_paths and (other.num_paths == 1 or self.family == other.family)


KINDS: dict[str, Kind] = {
    "ir": Kind("way", 1),
    "poly-2": Kind("poly", 2),
    "poly-3": Kind("poly", 3),
    "mpoly-2": Kind("mpoly", 2),
    "mpoly-3": Kind("mpoly", 3),
    "2-way": Kind("way", 2),
    "3-way": Kind("way", 3),
}
"""In this order: I + F (Inception-ResNet's own residual unit), I + F + F^2, I + F + F^2 + F^3, I + F + GF,
I + F + GF + HGF, I + F + G, I + F + G + H."""


class ConvNorm(nn.Module):
    """A convolution without bias and a BatchNorm, then ReLU unless `relu` is off, on [B, C, H, W].

    It keeps height and width, or halves them with `stride` 2, without padding. With `num_uses` it has a BatchNorm per
    use: a block that is applied to its own output sees other statistics there.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: Kernel,
        norm: Norm,
        *,
        stride: int = 1,
        padding: int | None = None,
        num_uses: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (sides[0] // 2, sides[1] // 2) if stride == 1 else (0, 0)
        self.conv = nn.Conv2d(in_channels, channels, sides, stride, same if padding is None else padding, bias=False)
        self.norms = nn.ModuleList([norm(channels) for _ in range(num_uses)])
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor, use: int = 0) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        out: Tensor = self.act(self.norms[use](self.conv(x)))
        return out


class Inception(nn.Module):
    """The Inception block F of a stage, without its residual: branches side by side, and a 1x1 convolution back to C.

    With `num_uses` above 1 it can be applied to its own output. The convolutions of its branches are shared by all
    uses; BatchNorms and the last 1x1 convolution are not, as in the authors' published network, whose 95,366,600
    parameters count them so.
    """

    def __init__(self, channels: int, branches: Sequence[Branch], norm: Norm, num_uses: int = 1) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for branch in branches:
            widths = [channels, *(width for width, _ in branch)]
            self.branches.append(
                nn.ModuleList(
                    ConvNorm(inputs, width, kernel, norm, num_uses=num_uses)
                    for inputs, (width, kernel) in zip(widths, branch, strict=False)
                )
            )
        joined = sum(branch[-1][0] for branch in branches)
        self.project = nn.ModuleList(ConvNorm(joined, channels, 1, norm, relu=False) for _ in range(num_uses))

    def forward(self, x: Tensor, use: int = 0) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W], the residual."""
        outputs = []
        for branch in self.branches:
            out = x
            for conv in branch:  # type: ignore[attr-defined]
                out = conv(out, use)
            outputs.append(out)
        residual: Tensor = self.project[use](torch.cat(outputs, 1))
        return residual


class PolyInception(nn.Module):
    """ReLU of a polynomial: the identity, and `scale` times every other term, on [B, C, H, W].

    Terms are computed in a cascade, F(x) and then F of that, so that no operation runs twice (figure 4, b). As every
    block reads what a ReLU has given, so does F when it reads its own output.

    With `drop_path`, every term but the identity is dropped at random per image ("stochastic paths", section 4):
    I + F + GF + HGF may become I + GF, for which F is computed all the same. As in timm, a term that is kept counts
    1 / (1 - drop_path) times in training, and every term once in evaluation. The authors' published network has the
    factors in evaluation instead, which has the same expectation.
    """

    def __init__(
        self, kind: str, channels: int, branches: Sequence[Branch], norm: Norm, *, scale: float, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.kind = KINDS[kind]
        self.scale = scale
        family, num_paths = self.kind
        uses = [num_paths] if family == "poly" else [1] * num_paths
        self.inceptions = nn.ModuleList(Inception(channels, branches, norm, num) for num in uses)
        self.drop_path = DropPath(drop_path)
        self.act = nn.ReLU()

    def zero_init_last(self) -> None:
        """Set the gammas that the terms end with to 0, so that the module gives what it gets."""
        for inception in self.inceptions:
            for conv in inception.project:  # type: ignore[union-attr]
                nn.init.zeros_(conv.norms[0].weight)

    def forward(self, x: Tensor) -> Tensor:
        """Features that are not negative, [B, C, H, W] -> [B, C, H, W]."""
        family, num_paths = self.kind
        out, inputs = x, x
        for path in range(num_paths):
            block, use = (0, path) if family == "poly" else (path, 0)
            term: Tensor = self.inceptions[block](inputs, use)
            out = out + self.scale * self.drop_path(term)
            if family != "way" and path + 1 < num_paths:
                inputs = self.act(term)
        result: Tensor = self.act(out)
        return result
