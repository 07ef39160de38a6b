"""Image files as upright 8-bit RGB, whatever mode they were stored in."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fampe_fast.errors import ImageReadError

__all__ = ["IMAGE_EXTENSIONS", "find_images", "load_images", "read_image", "to_rgb"]

#: File name extensions that `find_images` takes from a directory, in lower case.
IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".jp2"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)

# Opened through an external interpreter (Ghostscript) or an operating system's renderer: not for files from anywhere.
_VECTOR_FORMATS = frozenset({"EPS", "WMF"})
_HINTS = {
    ".heic": "HEIC needs a decoder that Pillow does not carry; convert it to JPEG or PNG",
    ".heif": "HEIF needs a decoder that Pillow does not carry; convert it to JPEG or PNG",
    ".svg": "SVG is a vector format; render it to PNG",
    ".pdf": "PDF is a document format; render the page to PNG",
    ".npy": "NumPy arrays are not image files; save them as PNG",
    ".npz": "NumPy archives are not image files; save them as PNG",
}
_DEEP_GREY_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a file as an upright RGB image of 8 bits per channel.

    What is done to get there: the EXIF orientation is applied; transparency (alpha channels, palettes and colours
    marked transparent) is composited on white; 16-bit and floating point greyscale is scaled to 8 bits instead of
    being clipped (see `to_rgb`); of an animated or multi-page file the first frame is taken. Colour profiles are
    ignored, as timm's and torchvision's own loaders do.

    Args:
        path: the file, in any raster format that Pillow reads. Vector formats (EPS, WMF) are refused.

    Returns:
        An image of mode RGB, decoded completely; the file is closed.

    Raises:
        ImageReadError: the file is missing, a directory, not a regular file, empty, unreadable, not an image,
            truncated or damaged, so large that it may be a decompression bomb (more than twice
            `PIL.Image.MAX_IMAGE_PIXELS`), or holds values of no known range. Attributes `path` and `reason`.
        TypeError: `path` is not a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or an os.PathLike, got {type(path).__name__}")
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            raise ImageReadError(path, "is a directory, not an image file")
        if not stat.S_ISREG(info.st_mode):
            raise ImageReadError(path, "is not a regular file")
        if info.st_size == 0:
            raise ImageReadError(path, "the file is empty (0 bytes)")
        # An own handle: Pillow's is left open by some plugins when decoding fails.
        with open(path, "rb") as stream:
            return _decode(stream, path)
    except ImageReadError:
        raise
    except FileNotFoundError as error:
        raise ImageReadError(path, "no such file") from error
    except PermissionError as error:
        raise ImageReadError(path, "permission denied") from error
    except UnidentifiedImageError as error:
        raise ImageReadError(path, _not_an_image(path)) from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(path, f"too many pixels, may be a decompression bomb ({error})") from error
    except MemoryError as error:
        raise ImageReadError(path, "the image does not fit into memory") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        text = str(error) or type(error).__name__
        word = "truncated" if "truncated" in text.lower() else "damaged or unsupported"
        raise ImageReadError(path, f"the image is {word} ({text})") from error


def _decode(stream: object, path: str | os.PathLike[str]) -> Image.Image:
    with Image.open(stream) as image:  # type: ignore[arg-type]
        if image.format in _VECTOR_FORMATS:
            raise ImageReadError(path, f"{image.format} is a vector format; render it to PNG")
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # damaged metadata: the pixels are still good
            upright = image
        try:
            rgb = to_rgb(upright, white=2 ** _grey_bits(image) - 1)
        except ValueError as error:
            raise ImageReadError(path, str(error)) from error
        # Pillow inverts a TIFF whose zero means white for up to 8 bits, but not beyond.
        white_is_zero = _tiff_tag(image, 262, 1) == 0  # 262: PhotometricInterpretation
        return ImageOps.invert(rgb) if white_is_zero and image.mode in _DEEP_GREY_MODES else rgb


def _grey_bits(image: Image.Image) -> int:
    """Bits of the file's integer grey samples: 12 in a 12-bit TIFF, 16 otherwise."""
    bits = _tiff_tag(image, 258, 16)  # 258: BitsPerSample
    return bits if 8 < bits < 16 else 16


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _not_an_image(path: str | os.PathLike[str]) -> str:
    hint = _HINTS.get(Path(path).suffix.lower())
    if hint is not None:
        return hint
    with open(path, "rb") as stream:
        return f"not an image in a format that Pillow reads (the file begins with {stream.read(8)!r})"


def to_rgb(image: Image.Image, *, white: int = 65535) -> Image.Image:
    """Convert an image of any mode to RGB, 8 bits per channel.

    Transparency is composited on white. Integer greyscale of more than 8 bits ("I;16", "I") is scaled by
    `255 / white` and rounded to nearest; floating point greyscale ("F") holds either [0, 1], scaled by 255, or
    [0, 255], taken as it is: the first of the two ranges that contains every value. Bilevel becomes black and white;
    CMYK, YCbCr, HSV, LAB and palettes are converted by Pillow.

    Args:
        image: the image; it is not changed.
        white: for integer greyscale of more than 8 bits, the value that becomes 255.

    Returns:
        A new image of mode RGB and the same size (the image itself if it is RGB without transparency).

    Raises:
        ValueError: values outside the ranges above, NaN or infinity, or a mode that Pillow does not convert to RGB.
    """
    if image.mode in _DEEP_GREY_MODES:
        values = np.asarray(image)  # in the byte order of the mode: "I;16B" is big endian
        grey = _float_to_bytes(values) if image.mode == "F" else _integer_to_bytes(values.astype(np.int64), white)
        transparent = image.info.get("transparency")  # one grey value, as PNG marks it
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = straight.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _integer_to_bytes(values: NDArray[np.int64], white: int) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise ValueError(
            f"greyscale values from {low} to {high}; expected 0 to {white}. Convert the image to 8 or 16 bits"
        )
    return ((values * 510 + white) // (2 * white)).astype(np.uint8)  # round(255 * v / white), halves up, exactly


def _float_to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise ValueError("floating point greyscale with NaN or infinite values")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255:
        raise ValueError(
            f"floating point greyscale values from {low:g} to {high:g}; expected [0, 1] or [0, 255]. "
            "Convert the image to 8 or 16 bits"
        )
    scale = 255.0 if high <= 1 else 1.0
    return np.floor(values.astype(np.float64) * scale + 0.5).astype(np.uint8)


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the image files that the given paths stand for.

    A directory stands for the image files directly in it, sorted by name: the extensions in `IMAGE_EXTENSIONS`, in
    upper or lower case, hidden files left out. Anything else is kept as it is given, in its place, whether or not it
    exists: what is wrong with it comes out when it is read.

    Args:
        paths: one path or several.

    Returns:
        The files. Never empty.

    Raises:
        ValueError: no path was given, or a directory holds no images.
        TypeError: something given is not a path.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: list[Path] = []
    for item in given:
        if not isinstance(item, str | os.PathLike):
            raise TypeError(f"paths must be str or os.PathLike, got {type(item).__name__}")
        path = Path(item)
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            entry
            for entry in path.iterdir()
            if entry.suffix.lower() in IMAGE_EXTENSIONS and not entry.name.startswith(".") and entry.is_file()
        )
        if not inside:
            raise ValueError(f"no images in the directory {path} (extensions looked for: {_extension_list()})")
        found.extend(inside)
    if not found:
        raise ValueError("no image paths given; expected at least one file or directory")
    return found


def _extension_list() -> str:
    return ", ".join(sorted(IMAGE_EXTENSIONS))


def load_images(
    paths: Iterable[str | os.PathLike[str]], transform: Callable[[Image.Image], Tensor]
) -> Iterator[tuple[Path, Tensor | ImageReadError]]:
    """Read and transform images one after the other; a bad file costs only itself.

    Args:
        paths: files, as from `find_images`.
        transform: from an RGB image to a tensor, as `Classifier.transform`.

    Yields:
        Each path, in order, with its tensor or with the ImageReadError that says what is wrong with it (an image
        which the transform refuses with a ValueError counts as unreadable too).
    """
    for item in paths:
        path = Path(item)
        yield path, _load(path, transform)


def _load(path: Path, transform: Callable[[Image.Image], Tensor]) -> Tensor | ImageReadError:
    try:
        return transform(read_image(path))
    except ImageReadError as error:
        return error
    except ValueError as error:
        return ImageReadError(path, str(error))
