"""Read image files of any mode as upright 8-bit RGB."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import FampeWarning, ImageReadError, warn
from ..files import IMAGE, MARK, mark_of

#: File name extensions that ``find_images`` finds in a directory, in lower case.
IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".jp2"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)

# Pillow opens these with an external interpreter (Ghostscript) or renderer, which is unsafe for unknown files.
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
# Below this share of the range the largest value leaves an image nearly black: 13 bits in a file of 16.
_DARK = 1 / 8
MAX_PIXELS = 178_956_970
"""Largest number of pixels that Pillow decodes without suspecting a decompression bomb."""
_FEW = 64  # too few pixels to judge a range; no method explains a smaller image
_FIGURE = f"figure that {MARK} wrote"


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a file as an upright RGB image of 8 bits per channel.

    The EXIF orientation is applied; transparency (alpha channels, palettes and colours marked transparent) is
    composited on white; 16-bit and floating point greyscale is scaled to 8 bits instead of being clipped (see
    ``to_rgb``); only the first frame of an animated or multi-page file is read. Colour profiles are ignored, as in
    timm's and torchvision's loaders.

    Args:
        path: the file, in any raster format that Pillow supports. Vector formats (EPS, WMF) are refused.

    Returns:
        A completely decoded image of mode RGB; the file is closed.

    Raises:
        ImageReadError: the file is missing, a directory, not a regular file, empty, unreadable, not an image,
            truncated or damaged, so large that it may be a decompression bomb (more than twice
            ``PIL.Image.MAX_IMAGE_PIXELS``), or has values of unknown range. Attributes ``path`` and ``reason``.
        TypeError: ``path`` is not a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a str or an os.PathLike, got {type(path).__name__}")
    with _said_in_words(path):
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            raise ImageReadError(path, "is a directory, not an image file")
        if not stat.S_ISREG(info.st_mode):
            raise ImageReadError(path, "is not a regular file")
        if info.st_size == 0:
            raise ImageReadError(path, "the file is empty (0 bytes)")
        # A separate handle, as some of Pillow's plugins leave theirs open when decoding fails.
        with open(path, "rb") as stream:
            return _decode(stream, path)


def read_image_bytes(data: bytes, name: str | os.PathLike[str], *, max_pixels: int | None = None) -> Image.Image:
    """Read an image from the bytes of a file, like ``read_image``.

    Args:
        data: content of the file.
        name: name of the image in messages.
        max_pixels: largest number of pixels; None for Pillow's limit, which always applies.

    Returns:
        A completely decoded image of mode RGB.

    Raises:
        ImageReadError: the bytes are none, not an image, truncated or damaged, have too many pixels, or hold values of
            no known range.
    """
    with _said_in_words(name):
        if not data:
            raise ImageReadError(name, "the file is empty (0 bytes)")
        return _decode(io.BytesIO(data), name, max_pixels)


@contextmanager
def _said_in_words(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert all errors of reading and decoding to an ``ImageReadError`` with a readable reason."""
    try:
        yield
    except (ImageReadError, FampeWarning):
        raise
    except FileNotFoundError as error:
        raise ImageReadError(path, "no such file") from error
    except PermissionError as error:
        raise ImageReadError(path, "permission denied") from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(path, f"too many pixels, may be a decompression bomb ({error})") from error
    except MemoryError as error:
        raise ImageReadError(path, "the image does not fit into memory") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        text = str(error) or type(error).__name__
        word = "truncated" if "truncated" in text.lower() else "damaged or unsupported"
        raise ImageReadError(path, f"the image is {word} ({text})") from error


def _decode(stream: BinaryIO, path: str | os.PathLike[str], max_pixels: int | None = None) -> Image.Image:
    try:
        opened = Image.open(stream)
    except UnidentifiedImageError as error:
        stream.seek(0)
        raise ImageReadError(path, _not_an_image(path, stream.read(8))) from error
    with opened as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise ImageReadError(path, f"too many pixels ({image.width} x {image.height}; at most {max_pixels})")
        if image.format in _VECTOR_FORMATS:
            raise ImageReadError(path, f"{image.format} is a vector format; render it to PNG")
        deep_colour = _is_deep_colour(image)
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # damaged metadata: the pixels are still good
            upright = image
        try:
            white = 2 ** _grey_bits(image) - 1
            rgb = to_rgb(upright, white=white)
        except ValueError as error:
            raise ImageReadError(path, str(error)) from error
        _warn_of_darkness(upright, white, path)
        if deep_colour:
            _warn_of_dark_colour(rgb, path)
        # Pillow inverts a TIFF whose zero means white for up to 8 bits, but not beyond.
        white_is_zero = _tiff_tag(image, 262, 1) == 0  # 262: PhotometricInterpretation
        return ImageOps.invert(rgb) if white_is_zero and image.mode in _DEEP_GREY_MODES else rgb


def _warn_of_darkness(image: Image.Image, white: int, path: str | os.PathLike[str]) -> None:
    """Warn if deep greyscale uses so little of its range that another range was probably meant."""
    if image.mode not in _DEEP_GREY_MODES or image.width * image.height < _FEW:
        return
    high = float(np.asarray(image).max())
    full = 255.0 if image.mode == "F" else float(white)
    if 0 < high < full * _DARK and not (image.mode == "F" and high <= 1):
        bits = max(1, int(high).bit_length())
        warn(
            f"{os.fspath(path)}: the largest greyscale value is {high:g} of {full:g}, so the image is nearly black; if "
            f"it holds values of {bits} bits, scale them to {full:g}"
        )


def _is_deep_colour(image: Image.Image) -> bool:
    """Tell whether an undecoded file has 16 bits per colour, of which Pillow keeps the upper 8."""
    return image.mode not in _DEEP_GREY_MODES and any(";16" in str(tile[3:]) for tile in getattr(image, "tile", []))


def _warn_of_dark_colour(rgb: Image.Image, path: str | os.PathLike[str]) -> None:
    """Warn like ``_warn_of_darkness`` about images with 16 bits per colour."""
    high = max(int(most) for _, most in rgb.getextrema()) if rgb.width * rgb.height >= _FEW else 0  # type: ignore[misc]
    if 0 < high < 255 * _DARK:
        warn(
            f"{os.fspath(path)}: the largest of its 16-bit values is below {257 * (high + 1)} of 65535, so the image "
            "is nearly black; if it holds values of fewer bits, scale them to 65535"
        )


def _grey_bits(image: Image.Image) -> int:
    """Read the bits of the file's integer grey samples: 12 in a 12-bit TIFF, 16 otherwise."""
    bits = _tiff_tag(image, 258, 16)  # 258: BitsPerSample
    return bits if 8 < bits < 16 else 16


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _not_an_image(path: str | os.PathLike[str], start: bytes) -> str:
    hint = _HINTS.get(Path(path).suffix.lower())
    if hint is not None:
        return hint
    return f"not an image in a format that Pillow reads (the file begins with {start!r})"


def to_rgb(image: Image.Image, *, white: int = 65535) -> Image.Image:
    """Convert an image of any mode to RGB, 8 bits per channel.

    Transparency is composited on white. Integer greyscale of more than 8 bits ("I;16", "I") is scaled by
    ``255 / white`` and rounded to nearest; floating point greyscale ("F") holds either [0, 1], scaled by 255, or
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


@dataclass
class FoundImages:
    """The image files of some paths.

    Attributes:
        paths: the image files, in order.
        left_out: for each directory, or figure given as a file, the counts of files left out by kind.
    """

    paths: list[Path] = field(default_factory=list)
    left_out: dict[Path, Counter[str]] = field(default_factory=dict)

    def left_out_text(self) -> str:
        """Describe the files left out; empty if there are none."""
        return "; ".join(f"{path}: {_counts(kinds)}" for path, kinds in self.left_out.items())


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the image files of paths.

    For a directory these are the image files directly in it, sorted by name: the extensions in ``IMAGE_EXTENSIONS``, in
    upper or lower case, hidden files left out. Figures written by this package are not images, and are always left out.
    All other paths are kept in their positions, whether or not they exist: errors are reported when they are read.

    Args:
        paths: one path or several.

    Returns:
        The files. Never empty.

    Raises:
        ValueError: no path was given, or a directory has no images.
        TypeError: an argument is not a path.
    """
    return survey_images(paths).paths


def survey_images(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, known: Iterable[Path] = ()
) -> FoundImages:
    """List image files like ``find_images``, and the files left out.

    Args:
        paths: one path or several.
        known: files that need not be reported, such as labels beside the images.

    Returns:
        The files, at least one, and the counts of those left out. Hidden files and this package's files other than
        figures are not counted.

    Raises:
        ValueError, TypeError: as ``find_images``.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    unsaid = {os.path.realpath(path) for path in known}
    found = FoundImages()
    for item in given:
        if not isinstance(item, str | os.PathLike):
            raise TypeError(f"paths must be str or os.PathLike, got {type(item).__name__}")
        path = Path(item)
        if not path.is_dir():
            if _is_figure(path):
                found.left_out[path] = Counter({_FIGURE: 1})
            else:
                found.paths.append(path)
            continue
        inside, left_out = [], Counter[str]()
        folders = []
        for entry in sorted(path.iterdir()):
            if entry.name.startswith("."):
                continue
            reason = _no_image(entry)
            if reason is None:
                inside.append(entry)
            elif reason and os.path.realpath(entry) not in unsaid:
                left_out[reason] += 1
                folders += [entry.name] if reason == "folder" else []
        if not inside:
            raise ValueError(_nothing_in(path, left_out, folders))
        found.paths.extend(inside)
        if left_out:
            found.left_out[path] = left_out
    if not found.paths:
        if found.left_out:
            raise ValueError(f"no images were given: {found.left_out_text()}")
        raise ValueError("no image paths given; expected at least one file or directory")
    return found


def _no_image(entry: Path) -> str | None:
    """Name the kind of a directory's entry that is not an image; empty if it is not reported, None for an image."""
    if entry.is_dir():
        return "folder"
    if not entry.exists():
        return "broken link"
    if not entry.is_file():
        return "special file"
    suffix = entry.suffix.lower()
    mark = mark_of(entry)
    if suffix in IMAGE_EXTENSIONS:
        return _FIGURE if mark is not None and mark.kind != IMAGE else None
    if mark is not None:
        return ""
    return suffix or "file without an ending"


def _is_figure(path: Path) -> bool:
    mark = mark_of(path)
    return mark is not None and path.suffix.lower() in IMAGE_EXTENSIONS and mark.kind != IMAGE


def _counts(kinds: Counter[str]) -> str:
    """Write counts as "2 .heic, 3 folders"."""
    plural = {"folder": "folders", "broken link": "broken links", "special file": "special files"}
    plural |= {_FIGURE: f"figures that {MARK} wrote", "file without an ending": "files without an ending"}
    return ", ".join(
        f"{count} {kind if count == 1 else plural.get(kind, kind)}" for kind, count in sorted(kinds.items())
    )


def _nothing_in(path: Path, left_out: Counter[str], folders: list[str]) -> str:
    text = f"no images in the directory {path} (extensions looked for: {_extension_list()})"
    if left_out:
        text += f"; it holds {_counts(left_out)}"
    if folders:
        few = ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else "")
        text += f": images are looked for in the directory itself, so name what is in it ({few})"
    return text


def _extension_list() -> str:
    return ", ".join(sorted(IMAGE_EXTENSIONS))


def load_images(
    paths: Iterable[str | os.PathLike[str]], transform: Callable[[Image.Image], Tensor]
) -> Iterator[tuple[Path, Tensor | ImageReadError]]:
    """Read and transform images one after the other; only bad files fail.

    Args:
        paths: files, as from ``find_images``.
        transform: from an RGB image to a tensor, as ``Classifier.transform``.

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
