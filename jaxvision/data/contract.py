"""InputContract: how pixels reach a network, carried by every checkpoint and export."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxvision.config.ranges import COLOUR, LEVELS
from jaxvision.errors import UserError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class InputContract:
    """How evaluation pixels are made, from the file to the network's input.

    The file is decoded to uint8 [H, W, channels], as `range` and `background` say; its shorter side is resized to
    `resize` pixels and the centre `size` x `size` is cut out. Inside the compiled step, (pixel / 255 - mean) / std.
    """

    size: int = 224
    resize: int = 256
    filter: str = "bilinear"  # antialiased, Pillow's; or "bicubic"
    decoder: str = "pillow"
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN  # of pixels in 0..1
    std: tuple[float, ...] = IMAGENET_STD
    range: tuple[float, ...] = ()  # levels that become 0 and 255, of grey files of more than 8 bits; (): all of 16 bits
    background: tuple[int, ...] = ()  # red, green, blue that transparent pixels are put on; (): alpha is dropped

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        object.__setattr__(self, "range", tuple(self.range))
        object.__setattr__(self, "background", tuple(self.background))
        if not 0 < self.size <= self.resize:
            raise UserError(
                f"the centre crop of {self.size} px does not fit into a resize to {self.resize} px: "
                "make data.resize at least data.size"
            )
        if self.filter not in ("bilinear", "bicubic"):
            raise UserError(f"unknown resize filter {self.filter!r}: {nearest(self.filter, ('bilinear', 'bicubic'))}")
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
        return (
            f"shorter side to {self.resize} px ({self.filter}, antialiased), centre {self.size} x {self.size}, "
            f"{self.channels} channels, mean ({mean}), std ({std})"
            + (f", levels {self.range[0]:g} to {self.range[1]:g}" if self.range else "")
            + (f", on the colour {self.background}" if self.background else "")
        )

    @property
    def decoding(self) -> dict[str, Any]:
        """Arguments of `decode`: all that it must know beside the image and its place."""
        return {"channels": self.channels, "range": self.range, "background": self.background}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputContract:
        fields = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in fields:
                raise UserError(f"unknown field {name!r} in an input contract: {nearest(name, fields)}")
        return cls(**values)
