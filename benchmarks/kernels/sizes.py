"""Problem sizes in order of importance: if the time runs out, the last ones are not run."""

from __future__ import annotations

from dataclasses import dataclass

CHANNELS = 3
CHUNK = 64


@dataclass(frozen=True)
class Size:
    """A batch of images and, where samples are drawn, how many of each.

    Attributes:
        images: B.
        samples: N; 0 for primitives that know no samples.
        height: H, pixels.
        width: W, pixels.
        channels: C.
    """

    images: int
    samples: int
    height: int
    width: int
    channels: int = CHANNELS

    @property
    def rows(self) -> int:
        """(image, sample) pairs of one launch: a chunk of those of a step, as the engine cuts them on a GPU."""
        return min(CHUNK, self.images * self.samples)

    @property
    def shown(self) -> int:
        """Images that a launch's rows show: they come image by image."""
        return -(-self.rows // max(1, self.samples))

    @property
    def pixels(self) -> int:
        """Of one channel of one image."""
        return self.height * self.width

    @property
    def coefficients(self) -> int:
        """Of the half spectrum of one channel of one image."""
        return self.height * (self.width // 2 + 1)

    @property
    def half(self) -> int:
        """Columns of the half spectrum."""
        return self.width // 2 + 1

    @property
    def layer(self) -> Size:
        """What a ResNet-50 that sees these images computes at stride 16; with other channels it is a layer already."""
        if self.channels != CHANNELS:
            return self
        return Size(self.images, 0, -(-self.height // 16), -(-self.width // 16), 1024)

    def __str__(self) -> str:
        images = f"{self.images} x {self.samples}" if self.samples else f"{self.images}"
        channels = f" x {self.channels}" if self.channels != CHANNELS else ""
        return f"{images} @ {self.height} x {self.width}{channels}"


def size_from_text(text: str) -> Size:
    """Read ``32x20x224x224``: images, samples, height, width.

    Raises:
        ValueError: anything else.
    """
    parts = text.split("x")
    if len(parts) != 4 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"a size is IMAGESxSAMPLESxHEIGHTxWIDTH, as 32x20x224x224; got {text!r}")
    images, samples, height, width = map(int, parts)
    return Size(images, samples, height, width)


USUAL = Size(32, 20, 224, 224)
"""The size for which the bars are set."""

SIZES = (
    USUAL,
    Size(1, 20, 224, 224),
    Size(64, 50, 224, 224),
    Size(32, 20, 512, 512),
    Size(32, 20, 32, 32),
    Size(8, 20, 224, 224),
    Size(32, 1, 224, 224),
    Size(32, 20, 299, 299),  # odd: half the planes start 8 bytes off
    Size(1, 1, 224, 224),
    Size(32, 20, 128, 128),
    Size(32, 20, 384, 384),
    Size(64, 20, 64, 64),
    Size(16, 50, 240, 320),
    Size(1, 50, 512, 512),
    Size(64, 1, 32, 32),
    Size(64, 20, 256, 256),
)

TOY_SIZES = (Size(1, 2, 8, 12, channels=1),)
"""For the interpreter, which takes seconds for what a GPU does in microseconds."""
