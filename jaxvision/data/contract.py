"""InputContract: how pixels reach a network, carried by every checkpoint and export."""

from __future__ import annotations

import dataclasses
import fractions
import math
from collections.abc import Sequence
from typing import Any

from jaxvision.config.ranges import COLOUR, LEVELS, SIDES
from jaxvision.errors import UserError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


FITS = ("crop", "stretch", "pad", "shortest")
FILTERS = ("bilinear", "bicubic", "linear")
# Fields that came later, and their values before: written only where they have others, so an older program reads what
# it understands and refuses the rest by name.
LATER = {"fit": "crop", "longest": 0}


@dataclasses.dataclass(frozen=True)
class InputContract:
    """How evaluation pixels are made, from the file to the network's input.

    The file is decoded to uint8 [H, W, channels], as `range` and `background` say, and put on a canvas of `size` as
    `fit` says. Inside the compiled step, (pixel / 255 - mean) / std.

    Attributes:
      size: of the canvas: a side, or (height, width); two equal sides become the one.
      fit: "crop": the shorter side to `resize`, then the centre is cut out. "stretch": to the canvas, whatever the
        shape. "pad": scaled so that the image just fits, at the top left. "shortest": the shorter side to `resize`,
        but no more than lets the longer be `longest` and the image fit, at the top left. What "pad" and "shortest"
        leave free is filled with the mean, rounded to a level per channel: 0 after normalisation, but for that
        rounding. A longer side is rounded down, and is at least 1.
      resize: of "crop" and "shortest"; 0 for the others.
      longest: of "shortest", 0 is as long as the canvas. Detectors of torchvision have resize 800 and longest 1333.
    """

    size: int | tuple[int, int] = 224
    resize: int = 256
    filter: str = "bilinear"  # antialiased, Pillow's; or "bicubic"; or "linear": OpenCV's exact one, not antialiased
    decoder: str = "pillow"
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN  # of pixels in 0..1
    std: tuple[float, ...] = IMAGENET_STD
    range: tuple[float, ...] = ()  # levels that become 0 and 255, of grey files of more than 8 bits; (): all of 16 bits
    background: tuple[int, ...] = ()  # red, green, blue that transparent pixels are put on; (): alpha is dropped
    fit: str = "crop"
    longest: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        object.__setattr__(self, "range", tuple(self.range))
        object.__setattr__(self, "background", tuple(self.background))
        SIDES.check("data.size", self.size if isinstance(self.size, int) else tuple(self.size))
        object.__setattr__(self, "size", self.height if self.height == self.width else (self.height, self.width))
        if self.fit not in FITS:
            raise UserError(f"unknown data.fit {self.fit!r}: {nearest(self.fit, FITS)}")
        if self.fit in ("stretch", "pad"):
            object.__setattr__(self, "resize", 0)
        if self.fit == "crop" and not max(self.height, self.width) <= self.resize:
            raise UserError(
                f"the centre crop of {self.canvas} px does not fit into a resize to {self.resize} px: "
                f"make data.resize at least {'data.size' if self.height == self.width else 'the longer of data.size'}"
            )
        if self.fit == "shortest" and not (self.resize >= 1 and (not self.longest or self.longest >= self.resize)):
            raise UserError(
                f"data.fit = 'shortest' with data.resize {self.resize} and data.longest {self.longest}: "
                "the first is at least 1, and the second at least the first, or 0"
            )
        if self.longest and self.fit != "shortest":
            raise UserError(f"data.longest is {self.longest}: it is of data.fit = 'shortest', and that is {self.fit!r}")
        if self.filter not in FILTERS:
            raise UserError(f"unknown resize filter {self.filter!r}: {nearest(self.filter, FILTERS)}")
        if self.channels not in (1, 3):
            raise UserError(f"data.channels is {self.channels}: images have 1 or 3")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UserError(f"mean and std need {self.channels} values, one a channel; got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise UserError(f"std must be positive, got {self.std}")
        LEVELS.check("data.range", self.range)
        COLOUR.check("data.background", self.background)

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        how = self.filter + (", antialiased" if self.filter != "linear" else "")
        most = f", the longer at most {self.longest} px" if self.longest else ""
        fit = {
            "crop": f"shorter side to {self.resize} px ({how}), centre {self.height} x {self.width}",
            "stretch": f"stretched to {self.height} x {self.width} ({how})",
            "pad": f"scaled to fit ({how}), padded to {self.height} x {self.width}",
            "shortest": f"shorter side to {self.resize} px{most} ({how}), padded to {self.height} x {self.width}",
        }[self.fit]
        return (
            f"{fit}, {self.channels} channels, mean ({mean}), std ({std})"
            + (f", levels {self.range[0]:g} to {self.range[1]:g}" if self.range else "")
            + (f", on the colour {self.background}" if self.background else "")
        )

    @property
    def height(self) -> int:
        """Height of the canvas, in pixels."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Width of the canvas, in pixels."""
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def canvas(self) -> str:
        """The size in words: "224", or "height x width"."""
        return str(self.size) if isinstance(self.size, int) else f"{self.height} x {self.width}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the pixels that reach the network: (height, width, channels)."""
        return self.height, self.width, self.channels

    @property
    def fill(self) -> tuple[int, ...]:
        """The level of each channel where no image is: the mean, rounded."""
        return tuple(round(255 * m) for m in self.mean)

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of height x width is resized to."""
        if self.fit == "stretch":
            return self.height, self.width
        short, long = min(height, width), max(height, width)
        # the largest factor that every bound allows, as whole numbers: new / old
        bounds = [] if self.fit == "crop" else [(self.height, height), (self.width, width)]
        bounds += [(self.resize, short)] if self.resize else []
        bounds += [(self.longest, long)] if self.longest else []
        new, old = min(bounds, key=lambda bound: fractions.Fraction(*bound))
        return max(1, height * new // old), max(1, width * new // old)

    @property
    def decoding(self) -> dict[str, Any]:
        """Arguments of `decode`: all that it must know beside the image and its place."""
        return {"channels": self.channels, "range": self.range, "background": self.background}

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; those of LATER only where they say something."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputContract:
        fields = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in fields:
                raise UserError(f"unknown field {name!r} in an input contract: {nearest(name, fields)}")
        return cls(**values)

    def differences(self, other: InputContract) -> dict[str, tuple[Any, Any]]:
        """Field to (value here, value there), of those that differ."""
        names = (f.name for f in dataclasses.fields(self))
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def default_resize(size: int | Sequence[int], fit: str) -> int:
    """Default of `resize`: torchvision's floor(size / 0.875) for "crop", of the longer side."""
    sides = (size,) if isinstance(size, int) else tuple(size)
    return {"crop": math.floor(max(sides) / 0.875), "shortest": min(sides)}.get(fit, 0)
