from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fampe_fast.errors import ImageReadError
from fampe_fast.images import IMAGE_EXTENSIONS, find_images, load_images, read_image, to_rgb


def _colours(height: int = 5, width: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """Colours that survive JPEG: one ramp per direction, blue flat."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 90)], -1).astype(np.uint8)


def _pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


# EXIF 2.3, section 4.6.4 A, tag 274: the sides of the upright picture at which the stored row 0 and column 0 lie.
ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def _stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores of a picture: pixel by pixel from the standard's table."""
    first_row, first_column = ROW_AND_COLUMN[orientation]
    height, width = upright.shape[:2]
    rows_are_rows = first_row in ("top", "bottom")
    stored = np.empty((height, width, 3) if rows_are_rows else (width, height, 3), np.uint8)
    for r in range(stored.shape[0]):
        for c in range(stored.shape[1]):
            along = {first_row: r, first_column: c}  # distance from the named side
            y = along["top"] if "top" in along else height - 1 - along["bottom"]
            x = along["left"] if "left" in along else width - 1 - along["right"]
            stored[r, c] = upright[y, x]
    return stored


class TestOrientation:
    @pytest.mark.parametrize("orientation", sorted(ROW_AND_COLUMN))
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
    def test_all_eight_lossless(self, tmp_path: Path, orientation: int, suffix: str) -> None:
        upright = _colours()
        image = Image.fromarray(_stored(upright, orientation))
        path = tmp_path / f"a{suffix}"
        if suffix == ".tif":
            image.save(path, tiffinfo={274: orientation})
        else:
            exif = Image.Exif()
            exif[274] = orientation
            image.save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
        np.testing.assert_array_equal(_pixels(path), upright)

    @pytest.mark.parametrize("orientation", sorted(ROW_AND_COLUMN))
    def test_all_eight_jpeg(self, tmp_path: Path, orientation: int) -> None:
        upright = _smooth()
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(_stored(upright, orientation)).save(tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
        found = _pixels(tmp_path / "a.jpg")
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).max() <= 6  # JPEG's own error; a wrong turn gives 255

    def test_sixteen_bit_is_turned_too(self, tmp_path: Path) -> None:
        values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
        exif = Image.Exif()
        exif[274] = 6  # to be turned clockwise
        Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(_pixels(tmp_path / "a.png")[..., 0], [[3, 0], [4, 1], [5, 2]])

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_damaged_exif_does_not_cost_the_image(self, tmp_path: Path) -> None:
        Image.fromarray(_smooth()).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
        assert _pixels(tmp_path / "a.jpg").shape == (48, 64, 3)


class TestModes:
    def test_rgb_is_unchanged(self, tmp_path: Path) -> None:
        Image.fromarray(_colours()).save(tmp_path / "a.png")
        np.testing.assert_array_equal(_pixels(tmp_path / "a.png"), _colours())

    def test_grey(self, tmp_path: Path) -> None:
        grey = _colours()[..., 0]
        Image.fromarray(grey).save(tmp_path / "a.png")
        np.testing.assert_array_equal(_pixels(tmp_path / "a.png"), np.repeat(grey[..., None], 3, -1))

    def test_bilevel(self, tmp_path: Path) -> None:
        bits = _colours()[..., 0] > 127
        Image.fromarray(bits).save(tmp_path / "a.png")
        np.testing.assert_array_equal(_pixels(tmp_path / "a.png")[..., 1], bits * 255)

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_is_composited_on_white(self, tmp_path: Path, mode: str) -> None:
        channels = len(mode)
        values = np.random.default_rng(1).integers(0, 256, (16, 16, channels), dtype=np.uint8)
        values[0, :, -1], values[1, :, -1] = 0, 255
        Image.fromarray(values, mode).save(tmp_path / "a.png")
        colour, alpha = values[..., :-1].astype(float), values[..., -1:] / 255
        expected = np.broadcast_to(colour * alpha + 255 * (1 - alpha), (16, 16, 3))
        found = _pixels(tmp_path / "a.png")
        assert np.abs(found - expected).max() <= 1  # Pillow blends in integers
        np.testing.assert_array_equal(found[0], 255)
        np.testing.assert_array_equal(found[1], np.broadcast_to(colour, (16, 16, 3))[1])

    @pytest.mark.parametrize("mode", ["RGBa", "La", "PA"])
    def test_rare_alpha_modes(self, mode: str) -> None:
        clear = Image.new("LA", (3, 2), (10, 0))
        opaque = Image.new("LA", (3, 2), (10, 255))
        via = {"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}[mode]
        for image, value in ((clear, 255), (opaque, 10)):
            if mode == "PA":
                converted = image.convert("L").convert("P").convert("PA")
                converted.putalpha(image.getchannel("A"))
            else:
                converted = image.convert(via).convert(mode)
            assert converted.mode == mode
            np.testing.assert_array_equal(np.asarray(to_rgb(converted)), value)

    def test_palette(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 2))
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
        image.putdata([0, 1, 2, 3])
        image.save(tmp_path / "a.png")
        expected = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]]
        np.testing.assert_array_equal(_pixels(tmp_path / "a.png"), expected)

    @pytest.mark.parametrize("suffix", [".png", ".gif"])
    def test_palette_with_a_transparent_entry(self, tmp_path: Path, suffix: str) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.putdata([0, 1])
        image.save(tmp_path / f"a{suffix}", transparency=1)
        np.testing.assert_array_equal(_pixels(tmp_path / f"a{suffix}"), [[[255, 0, 0], [255, 255, 255]]])

    def test_palette_with_half_transparent_entries(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([200, 0, 0, 0, 100, 0])
        image.putdata([0, 1])
        image.save(tmp_path / "a.png", transparency=bytes([51, 255]))
        np.testing.assert_array_equal(_pixels(tmp_path / "a.png"), [[[244, 204, 204], [0, 100, 0]]])

    def test_colour_marked_transparent(self, tmp_path: Path) -> None:
        values = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
        Image.fromarray(values).save(tmp_path / "a.png", transparency=(4, 5, 6))
        np.testing.assert_array_equal(_pixels(tmp_path / "a.png"), [[[1, 2, 3], [255, 255, 255]]])

    def test_grey_marked_transparent(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[7, 9]], np.uint8)).save(tmp_path / "a.png", transparency=9)
        np.testing.assert_array_equal(_pixels(tmp_path / "a.png")[0, :, 0], [7, 255])

    @pytest.mark.parametrize("suffix", [".tif", ".jpg"])
    def test_cmyk(self, tmp_path: Path, suffix: str) -> None:
        inks = {"white": (0, 0, 0, 0), "black": (0, 0, 0, 255), "cyan": (255, 0, 0, 0), "yellow": (0, 0, 255, 0)}
        expected = {"white": (255, 255, 255), "black": (0, 0, 0), "cyan": (0, 255, 255), "yellow": (255, 255, 0)}
        for name, ink in inks.items():
            path = tmp_path / f"{name}{suffix}"
            Image.new("CMYK", (16, 16), ink).save(path, **({"quality": 100} if suffix == ".jpg" else {}))
            assert np.abs(_pixels(path).astype(int) - expected[name]).max() <= 2

    def test_cmyk_mixture_follows_the_formula(self, tmp_path: Path) -> None:
        inks = np.random.default_rng(2).integers(0, 256, (8, 8, 4), dtype=np.uint8)
        Image.fromarray(inks, "CMYK").save(tmp_path / "a.tif")
        share = 1 - inks / 255
        expected = 255 * share[..., :3] * share[..., 3:]
        assert np.abs(_pixels(tmp_path / "a.tif") - expected).max() <= 1

    def test_lab(self, tmp_path: Path) -> None:
        for lightness, grey in ((255, 255), (0, 0)):
            Image.new("LAB", (2, 2), (lightness, 128, 128)).save(tmp_path / "a.tif")
            assert np.abs(_pixels(tmp_path / "a.tif").astype(int) - grey).max() <= 2

    def test_ycbcr_and_hsv(self) -> None:
        np.testing.assert_array_equal(np.asarray(to_rgb(Image.new("YCbCr", (2, 2), (77, 128, 128)))), 77)
        np.testing.assert_array_equal(np.asarray(to_rgb(Image.new("HSV", (1, 1), (0, 255, 255)))), [[[255, 0, 0]]])

    def test_animation_gives_the_first_frame(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
        for suffix in (".gif", ".png", ".tif", ".webp"):
            path = tmp_path / f"a{suffix}"
            frames[0].save(
                path, save_all=True, append_images=frames[1:], **({"lossless": True} if "w" in suffix else {})
            )
            np.testing.assert_array_equal(_pixels(path), np.broadcast_to([255, 0, 0], (4, 4, 3)))

    def test_the_image_given_is_not_changed(self) -> None:
        image = Image.new("RGBA", (2, 2), (1, 2, 3, 4))
        before = image.tobytes()
        to_rgb(image)
        assert image.mode == "RGBA"
        assert image.tobytes() == before


def _exact(values: np.ndarray, white: int) -> np.ndarray:
    """255 * v / white to the nearest integer, in Python's exact arithmetic."""
    return np.array([(2 * 255 * int(v) + white) // (2 * white) for v in values.ravel()]).reshape(values.shape)


class TestDeepGrey:
    ALL = np.arange(65536, dtype=np.uint16).reshape(256, 256)

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
    def test_every_sixteen_bit_value(self, tmp_path: Path, suffix: str) -> None:
        if suffix == ".pgm":
            (tmp_path / "a.pgm").write_bytes(b"P5 256 256 65535\n" + self.ALL.astype(">u2").tobytes())
        else:
            Image.fromarray(self.ALL).save(tmp_path / f"a{suffix}")
        found = _pixels(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(found[..., 2], _exact(self.ALL, 65535))
        assert np.abs(found[..., 0] - self.ALL / 257).max() <= 0.5

    def test_big_endian(self, tmp_path: Path) -> None:
        image = Image.frombytes("I;16B", (256, 256), self.ALL.astype(">u2").tobytes())
        np.testing.assert_array_equal(np.asarray(to_rgb(image))[..., 0], _exact(self.ALL, 65535))
        image.save(tmp_path / "a.tif")
        with Image.open(tmp_path / "a.tif") as written:
            assert written.mode == "I;16B"
        np.testing.assert_array_equal(_pixels(tmp_path / "a.tif")[..., 0], _exact(self.ALL, 65535))

    def test_thirty_two_bit_container(self, tmp_path: Path) -> None:
        Image.fromarray(self.ALL.astype(np.int32)).save(tmp_path / "a.tif")
        with Image.open(tmp_path / "a.tif") as written:
            assert written.mode == "I"
        np.testing.assert_array_equal(_pixels(tmp_path / "a.tif")[..., 0], _exact(self.ALL, 65535))

    def test_twelve_bit_tiff(self, tmp_path: Path) -> None:
        values = np.array([[0, 1, 2047, 2048, 4094, 4095]])
        packed = bytearray()
        for a, b in values.reshape(-1, 2):
            packed += bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
        path = tmp_path / "a.tif"
        path.write_bytes(_tiff(width=6, height=1, bits=12, photometric=1, data=bytes(packed)))
        np.testing.assert_array_equal(_pixels(path)[..., 0], _exact(values, 4095))

    def test_tiff_whose_zero_is_white(self, tmp_path: Path) -> None:
        values = np.array([[0, 257, 65535]], "<u2")
        path = tmp_path / "a.tif"
        path.write_bytes(_tiff(width=3, height=1, bits=16, photometric=0, data=values.tobytes()))
        np.testing.assert_array_equal(_pixels(path)[0, :, 0], [255, 254, 0])
        path.write_bytes(_tiff(width=3, height=1, bits=8, photometric=0, data=bytes([0, 1, 255])))
        np.testing.assert_array_equal(_pixels(path)[0, :, 0], [255, 254, 0])

    def test_transparent_value(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 1000, 25700]], np.uint16)).save(tmp_path / "a.png")
        data = (tmp_path / "a.png").read_bytes()
        body = b"tRNS" + struct.pack(">H", 1000)
        chunk = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
        place = data.index(b"IDAT") - 4
        (tmp_path / "a.png").write_bytes(data[:place] + chunk + data[place:])
        np.testing.assert_array_equal(_pixels(tmp_path / "a.png")[0, :, 0], [0, 255, 100])

    @pytest.mark.parametrize("values", [[-1, 5], [0, 70000]])
    def test_integers_of_no_known_range(self, tmp_path: Path, values: list[int]) -> None:
        Image.fromarray(np.array([values], np.int32)).save(tmp_path / "a.tif")
        with pytest.raises(ImageReadError, match=f"from {values[0]} to {values[1]}; expected 0 to 65535"):
            read_image(tmp_path / "a.tif")

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),
            ([0.0, 0.4, 100.6, 255.0], [0, 0, 101, 255]),
            ([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0]),
        ],
    )
    def test_floats(self, tmp_path: Path, values: list[float], expected: list[int]) -> None:
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
        np.testing.assert_array_equal(_pixels(tmp_path / "a.tif")[0, :, 0], expected)

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ([0.0, np.nan], "NaN or infinite"),
            ([0.0, np.inf], "NaN or infinite"),
            ([-0.5, 1.0], "-0.5 to 1"),
            ([0.0, 256.0], "0 to 256"),
        ],
    )
    def test_floats_of_no_known_range(self, tmp_path: Path, values: list[float], reason: str) -> None:
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(ImageReadError, match=reason):
            read_image(tmp_path / "a.tif")


def _tiff(*, width: int, height: int, bits: int, photometric: int, data: bytes) -> bytes:
    """A little-endian TIFF of one uncompressed strip, for what Pillow reads but does not write."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(data)))
    padded = data + b"\0" * (len(data) % 2)
    directory = struct.pack("<H", len(tags))
    for tag, value in tags:
        directory += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + directory + struct.pack("<I", 0)


class TestBadFiles:
    def _reason(self, path: Path) -> str:
        with pytest.raises(ImageReadError) as caught:
            read_image(path)
        assert caught.value.path == str(path)
        assert str(caught.value) == f"{path}: {caught.value.reason}"
        return caught.value.reason

    def test_missing(self, tmp_path: Path) -> None:
        assert self._reason(tmp_path / "a.png") == "no such file"

    def test_directory(self, tmp_path: Path) -> None:
        assert "directory" in self._reason(tmp_path)

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        assert "empty" in self._reason(tmp_path / "a.png")

    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_text("hello, world")
        assert "not an image" in self._reason(tmp_path / "a.jpg")
        assert "hello, w" in self._reason(tmp_path / "a.jpg")

    @pytest.mark.parametrize(("suffix", "word"), [(".heic", "HEIC"), (".svg", "SVG"), (".npy", "NumPy")])
    def test_hints(self, tmp_path: Path, suffix: str, word: str) -> None:
        (tmp_path / f"a{suffix}").write_bytes(b"<xml> something else")
        assert word in self._reason(tmp_path / f"a{suffix}")

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".bmp", ".tif"])
    @pytest.mark.parametrize("share", [0.3, 0.8])
    def test_truncated(self, tmp_path: Path, suffix: str, share: float) -> None:
        stream = io.BytesIO()
        noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(stream, format={".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper()))
        whole = stream.getvalue()
        (tmp_path / f"a{suffix}").write_bytes(whole[: int(len(whole) * share)])
        reason = self._reason(tmp_path / f"a{suffix}")
        assert "truncated" in reason or "damaged" in reason or "not an image" in reason

    def test_truncated_says_so(self, tmp_path: Path) -> None:
        Image.fromarray(_smooth()).save(tmp_path / "a.jpg")
        whole = (tmp_path / "a.jpg").read_bytes()
        (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
        assert "truncated" in self._reason(tmp_path / "a.jpg")

    def test_damaged_png(self, tmp_path: Path) -> None:
        Image.fromarray(_colours(64, 64)).save(tmp_path / "a.png")
        data = bytearray((tmp_path / "a.png").read_bytes())
        data[len(data) // 2] ^= 0xFF
        (tmp_path / "a.png").write_bytes(data)
        assert "damaged" in self._reason(tmp_path / "a.png")

    def test_decompression_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("L", (100, 100)).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        assert "bomb" in self._reason(tmp_path / "a.png")

    def test_vector_formats_are_not_run(self, tmp_path: Path) -> None:
        (tmp_path / "a.eps").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 moveto\n%%EOF\n"
        )
        assert "vector" in self._reason(tmp_path / "a.eps")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
    def test_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.png")
        assert "regular" in self._reason(tmp_path / "a.png")

    @pytest.mark.skipif(
        sys.platform == "win32" or getattr(os, "geteuid", lambda: 1)() == 0, reason="this user may read every file"
    )
    def test_permission(self, tmp_path: Path) -> None:
        Image.new("L", (2, 2)).save(tmp_path / "a.png")
        (tmp_path / "a.png").chmod(0)
        assert "permission" in self._reason(tmp_path / "a.png")

    def test_file_is_closed(self, tmp_path: Path) -> None:
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
        read_image(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        with pytest.raises(ImageReadError):
            read_image(tmp_path / "b.png")
        if Path("/proc/self/fd").is_dir():
            assert not [fd for fd in Path("/proc/self/fd").iterdir() if tmp_path in Path(os.path.realpath(fd)).parents]

    @pytest.mark.parametrize("path", [3, None, b"a.png"])
    def test_not_a_path(self, path: object) -> None:
        with pytest.raises(TypeError, match="path must be"):
            read_image(path)  # type: ignore[arg-type]


class TestFindImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("b.JPEG", "a.png", "C.Jpg", "notes.txt", ".hidden.png", "labels.json"):
            (tmp_path / name).touch()
        (tmp_path / "sub.png").mkdir()
        return tmp_path

    def test_directory(self, folder: Path) -> None:
        assert [path.name for path in find_images([folder])] == ["C.Jpg", "a.png", "b.JPEG"]

    def test_files_are_kept_as_given_and_in_place(self, folder: Path) -> None:
        given = [folder / "notes.txt", folder, "gone.png"]
        names = [path.name for path in find_images(given)]
        assert names == ["notes.txt", "C.Jpg", "a.png", "b.JPEG", "gone.png"]

    def test_one_path(self, folder: Path) -> None:
        assert find_images(str(folder / "a.png")) == [folder / "a.png"]
        assert len(find_images(folder)) == 3

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no images in the directory .*\.png"):
            find_images(tmp_path)
        with pytest.raises(ValueError, match="no image paths given"):
            find_images([])

    def test_not_a_path(self) -> None:
        with pytest.raises(TypeError, match="int"):
            find_images([3])  # type: ignore[list-item]

    def test_every_extension_is_one_that_pillow_knows(self) -> None:
        missing = IMAGE_EXTENSIONS - set(Image.registered_extensions())
        assert missing <= {".avif"}  # optional in builds of Pillow


class TestLoadImages:
    def test_a_bad_file_costs_only_itself(self, tmp_path: Path) -> None:
        for name, value in (("a.png", 10), ("c.png", 30)):
            Image.new("RGB", (4, 4), (value,) * 3).save(tmp_path / name)
        (tmp_path / "b.png").write_text("not an image")
        results = list(
            load_images(find_images(tmp_path), lambda image: torch.from_numpy(np.array(image)).float().mean())
        )
        assert [path.name for path, _ in results] == ["a.png", "b.png", "c.png"]
        assert results[0][1] == 10
        assert isinstance(results[1][1], ImageReadError)
        assert results[1][1].path == str(tmp_path / "b.png")
        assert results[2][1] == 30

    def test_an_image_that_the_transform_refuses(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

        def refuse(image: Image.Image) -> torch.Tensor:
            raise ValueError("too small")

        [(path, problem)] = load_images([tmp_path / "a.png"], refuse)
        assert isinstance(problem, ImageReadError)
        assert problem.reason == "too small"
        assert path == tmp_path / "a.png"

    def test_lazy(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        results = load_images([tmp_path / "a.png", 3], lambda image: torch.zeros(1))  # type: ignore[list-item]
        assert next(results)[0].name == "a.png"
