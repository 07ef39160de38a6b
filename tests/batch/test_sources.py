"""Sources: what they list, in which order, and the bytes that are read again."""

from __future__ import annotations

import csv
import errno
import io
import os
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fampe_fast.batch import found, image_bytes, sources
from fampe_fast.batch.failures import PermanentError, TransientError
from fampe_fast.batch.image_bytes import read_bytes
from fampe_fast.batch.plan import Row
from fampe_fast.batch.retry import Retry
from fampe_fast.batch.sources import absolute, list_rows
from fampe_fast.errors import ImageReadError
from fampe_fast.files import FIGURE, IMAGE, png_content
from fampe_fast.images import read_image, read_image_bytes

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec")

ONCE = Retry(1)


def png(seed: int = 0) -> bytes:
    """Encode a small image of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def listed(*sources: Path | str, **options: Any) -> list[Row]:
    return list(list_rows([str(source) for source in sources], **options))


def write(path: Path, content: bytes | str = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def uris(rows: Sequence[Row]) -> list[str]:
    return [row.uri for row in rows]


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., str]:
    """Put files into an object store, and give the address of the folder that they are in."""

    def put(files: dict[str, bytes]) -> str:
        for name, content in files.items():
            fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/{name}", content)
        return f"memory://{tmp_path.name}"

    return put


# Folders and globs ----------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_with_all_in_it_in_the_order_of_names(tmp_path: Path) -> None:
    names = ["b.png", "a/2.JPG", "a/10.jpeg", "a-b/1.webp", "a/c/d/0.png", "z.tiff"]
    for name in [*names, ".hidden.png", ".git/1.png", "notes.txt", "a/.x/1.png", "labels.csv", "movie"]:
        write(tmp_path / name)
    notes: list[str] = []
    rows = listed(tmp_path, note=notes.append)
    expected = ["a/10.jpeg", "a/2.JPG", "a/c/d/0.png", "a-b/1.webp", "b.png", "z.tiff"]
    assert uris(rows) == [str(tmp_path / name) for name in expected]
    assert [(row.position, row.image_id) for row in rows] == [(k, k) for k in range(6)]
    assert {row[3:] for row in rows} == {(None, None, None, None)}
    assert notes == [f"left out of {tmp_path}: 1 .csv, 1 .txt, 1 without an ending"]


def test_a_store_is_listed_as_the_same_folder_is(tmp_path: Path, store: Callable[..., str]) -> None:
    names = ["b.png", "a/2.JPG", "a/10.jpeg", "a-b/1.webp", "a/c/d/0.png", ".hidden.png", ".git/1.png", "notes.txt"]
    for name in names:
        write(tmp_path / "local" / name, name)
    address = store({name: name.encode() for name in names})
    local = listed(tmp_path / "local")
    remote = listed(address)
    assert [Path(row.uri).relative_to(tmp_path / "local").as_posix() for row in local] == [
        row.uri.partition(f"{tmp_path.name}/")[2] for row in remote
    ]
    assert [read_bytes(row, 100) for row in local] == [read_bytes(row, 100) for row in remote]


def test_figures_of_this_package_are_left_out_and_its_images_are_not(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    write(tmp_path / "figure.png", png_content(image, FIGURE))
    write(tmp_path / "image.png", png_content(image, IMAGE))
    notes: list[str] = []
    assert uris(listed(tmp_path, note=notes.append)) == [str(tmp_path / "image.png")]
    assert notes == [f"left out of {tmp_path}: 1 figures of this package"]


def test_globs_and_single_files(tmp_path: Path, store: Callable[..., str]) -> None:
    for name in ("b/2.png", "a/1.png", "a/1.txt", "c.png", "[odd].png", "a/.h.png"):
        write(tmp_path / name)
    notes: list[str] = []
    assert uris(listed(tmp_path / "*" / "*", note=notes.append)) == [str(tmp_path / n) for n in ("a/1.png", "b/2.png")]
    assert notes == [f"left out of {tmp_path}/*/*: 1 .txt"]
    every = ("[odd].png", "a/1.png", "b/2.png", "c.png")
    assert uris(listed(tmp_path / "**" / "*.png")) == [str(tmp_path / name) for name in every]
    assert uris(listed(tmp_path / "c.png", tmp_path / "[odd].png")) == [
        str(tmp_path / n) for n in ("c.png", "[odd].png")
    ]
    address = store({"b/2.png": b"2", "a/1.png": b"1", "a/1.txt": b"", "c.png": b"3"})
    assert [read_bytes(row, 9) for row in listed(f"{address}/*/*.png")] == [b"1", b"2"]
    assert [read_bytes(row, 9) for row in listed(f"{address}/c.png")] == [b"3"]


def test_several_sources_follow_each_other(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        write(tmp_path / name)
    rows = listed(tmp_path / "b", tmp_path / "a", tmp_path / "b" / "1.png")
    assert uris(rows) == [str(tmp_path / name) for name in ("b/1.png", "a/1.png", "b/1.png")]
    assert [row.image_id for row in rows] == [0, 1, 2]


def test_a_relative_source_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "photos" / "1.png")
    monkeypatch.chdir(tmp_path)
    assert uris(listed("photos")) == uris(listed("./photos/*.png")) == [str(tmp_path / "photos" / "1.png")]
    assert absolute("photos/../photos") == absolute(f"file://{tmp_path}/photos") == str(tmp_path / "photos")


def test_sources_without_images_are_refused_in_a_line(tmp_path: Path, store: Callable[..., str]) -> None:
    write(tmp_path / "tars" / "0.tar")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "movie.mp4")
    write(tmp_path / "photos.tar.gz")
    address = store({"x/notes.txt": b""})
    for source, reason in [
        (tmp_path / "gone", "there is no .*gone; expected a folder"),
        (tmp_path / "tars", r"no images .*found: 1 \.tar.*name them as sources \('.*tars/\*\.tar'\)"),
        (tmp_path / "empty", "no images"),
        (tmp_path / "empty" / "*", "matches no files"),
        (tmp_path / "movie.mp4", "is not of a kind"),
        (tmp_path / "photos.tar.gz", "compressed"),
        ("", "empty"),
        (f"{address}/x", r"no images .*found: 1 \.txt"),
        (f"{address}/gone", "there is no memory://"),
        (f"{address}/*.png", "matches no files"),
        ("nonsense://x/*.png", "no such kind of address"),
        ("s3://me:password@bucket/x", "name or password"),
    ]:
        with pytest.raises(ValueError, match=reason) as raised:
            listed(source)
        assert "\n" not in str(raised.value)
        assert "password@" not in str(raised.value)


@pytest.mark.parametrize("pattern", ["", "/*"])
def test_a_name_that_is_not_utf_8_costs_its_image_alone(tmp_path: Path, pattern: str) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    try:
        Path(strange).write_bytes(b"content")
    except OSError:
        pytest.skip("this file system takes no such names")
    write(tmp_path / "a.png", b"content")
    notes: list[str] = []
    assert uris(list_rows([f"{tmp_path}{pattern}"], note=notes.append)) == [str(tmp_path / "a.png")]
    assert notes == [f"left out of {tmp_path}{pattern}: 1 with a name that is not UTF-8"]
    with pytest.raises(ValueError, match="is not a name in UTF-8: rename the file"):
        list(list_rows([strange]))


# Targets, ids, samples ------------------------------------------------------------------------------------------------


def test_a_sample_has_the_ids_and_the_order_of_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "uri,target\n" + "".join(f"{k}.png,{k % 7}\n" for k in range(200)))
    whole = listed(tmp_path / "t.csv")
    for count, seed in [(1, 0), (17, 0), (17, 5), (200, 3)]:
        sample = listed(tmp_path / "t.csv", sample=count, seed=seed)
        assert [row.position for row in sample] == list(range(count))
        places = [row.image_id for row in sample]
        assert places == sorted(set(places))
        assert [row._replace(position=0) for row in sample] == [whole[place]._replace(position=0) for place in places]
        assert sample == listed(tmp_path / "t.csv", sample=count, seed=seed)
    assert listed(tmp_path / "t.csv", sample=17) != listed(tmp_path / "t.csv", sample=17, seed=1)
    with pytest.raises(ValueError, match="there are 200 images .* sample of 201"):
        listed(tmp_path / "t.csv", sample=201)


def test_every_image_is_as_likely_to_be_drawn(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "uri\n" + "".join(f"{k}.png\n" for k in range(20)))
    counts = np.zeros(20)
    for seed in range(400):
        for row in listed(tmp_path / "t.csv", sample=5, seed=seed):
            counts[row.image_id] += 1
    # A binomial of 400 draws at 1/4: its standard deviation is 8.66, and 5 of them are never seen in 20 counts.
    assert abs(counts - 100).max() < 43


def test_targets_come_from_the_sources_or_for_all_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "uri,label\na.png,3\nb.png,\n")

    def targets(**options: Any) -> list[int | None]:
        return [row.target for row in listed(tmp_path / "t.csv", **options)]

    assert targets() == targets(classes=4) == [3, None]
    assert targets(target="model") == [None, None]
    assert targets(target=2) == [2, 2]
    with pytest.raises(ValueError, match=r"the target 3 of .*a\.png is out of range: the model has 3 classes"):
        targets(classes=3)
    with pytest.raises(ValueError, match="the target 9 .* out of range"):
        targets(target=9, classes=3)
    assert targets(target="model", classes=1) == [None, None]


def test_ids_must_be_unique_over_all_sources(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "uri,image_id\na.png,7\nb.png,4294967294\nc.png,0\n")
    assert [row.image_id for row in listed(tmp_path / "a.csv")] == [7, 2**32 - 2, 0]
    write(tmp_path / "b.csv", "uri,image_id\nd.png,7\n")
    with pytest.raises(ValueError, match=r"unique; .*d\.png has 7"):
        listed(tmp_path / "a.csv", tmp_path / "b.csv")
    write(tmp_path / "photos" / "x.png")  # its place, 3, is free; after four images 0 to 3 are not
    assert [row.image_id for row in listed(tmp_path / "a.csv", tmp_path / "photos")] == [7, 2**32 - 2, 0, 3]
    with pytest.raises(ValueError, match=r"unique; .*c\.png has 0"):
        listed(tmp_path / "photos", tmp_path / "a.csv")


def test_the_set_of_ids_is_that_of_a_set() -> None:
    from fampe_fast.batch.sources import SeenIds

    generator = random.Random(0)
    ids, known = SeenIds(), set()
    for _ in range(3000):
        number = generator.choice([generator.randrange(500), generator.randrange(10**6)])
        assert ids.add(number) == (number not in known)
        known.add(number)


# CSV ------------------------------------------------------------------------------------------------------------------


def test_csv_with_a_byte_order_mark_quotes_and_any_line_ends(tmp_path: Path) -> None:
    names = ["plain.png", "with, comma.png", 'with "quotes".png', "with\nline.png", "ünï.png", " padded.png"]
    with open(tmp_path / "t.csv", "w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, lineterminator="\r\n")
        table.writerow(["URI", "Target", "IMAGE_ID"])
        for k, name in enumerate(names):
            table.writerow([name, k, 10 + k])
        file.write("\r\n")
    rows = listed(tmp_path / "t.csv")
    assert uris(rows) == [str(tmp_path / name.strip()) for name in names]
    assert [(row.target, row.image_id) for row in rows] == [(k, 10 + k) for k in range(6)]


def test_a_tables_paths_are_relative_to_its_folder(
    tmp_path: Path, store: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = sources.filesystem_of
    monkeypatch.setattr(
        sources, "filesystem_of", lambda url: asked.append(url) or (real(url) if "mem" in url else None)
    )
    lines = ["path", "a.png", "../b.png", "/abs/c.png", "s3://bucket/d.png", "file:///e.png", "https://h/f.png?t=1"]
    write(tmp_path / "tables" / "t.csv", "\n".join(lines))
    expected = [f"{tmp_path}/tables/a.png", f"{tmp_path}/b.png", "/abs/c.png", "s3://bucket/d.png", "/e.png"]
    assert uris(listed(tmp_path / "tables" / "t.csv")) == [*expected, "https://h/f.png?t=1"]
    assert asked == ["s3://bucket/d.png", "https://h/f.png?t=1"]  # whether what they need is there
    address = store({"tables/t.csv": b"path\na.png\n../b.png\n", "tables/a.png": b"A", "b.png": b"B"})
    assert [read_bytes(row, 9) for row in listed(f"{address}/tables/t.csv")] == [b"A", b"B"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("name,7\na.png,3\n", "has the columns name, 7; expected a column uri"),
        ("uri;target\na.png;3\n", "has the columns uri;target; expected"),
        ("", r"has the columns \(none\)"),
        ("uri,uri\na,b\n", "several columns 'uri'"),
        ("uri,targets\na.png,3\n", "a column 'targets', which is unknown: rename it if 'target' is meant"),
        ("uri,labels\na.png,3\n", "'labels'.*'label'"),
        ("uri,imageid\na.png,3\n", "'imageid'.*'image_id'"),
        ("uri,target\na.png,cat\n", "line 2: the target is 'cat'; expected a class index"),
        ("uri,target\na.png,3\nb.png,-1\n", "line 3: the target is '-1'"),
        ("uri,target\na.png,1.5\n", "line 2: the target is '1.5'"),
        ("uri,target\na.png\n", "line 2: 1 cells; expected 2"),
        ("uri,image_id\na.png,\n", "line 2: the image id is ''"),
        ("uri,image_id\na.png,-1\n", "line 2: the image id is '-1'"),
        ("uri,image_id\na.png,4294967295\n", "line 2: the image id is '4294967295'"),
        ("uri,image_id\na.png,0.5\n", "line 2: the image id is '0.5'"),
        ("uri,image_id\na.png,1\nb.png,1\n", r"unique; .*b\.png has 1"),
        ("uri,target\n,1\n", "line 2: the place of the image is ''"),
        ("uri\ns3://me:password@b/a.png\n", "line 2: s3://b/a.png is given with a name or password"),
        (b"uri\n\xff.png\n", "not UTF-8"),
        ("uri\n" + "x" * 200_000 + "\n", "not CSV"),
        ("uri\na.png\nnonsense://x/b.png\n", "no such kind of address"),
    ],
)  # fmt: skip
def test_bad_csv_is_refused_in_a_line(tmp_path: Path, content: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        listed(write(tmp_path / "t.csv", content))
    assert "\n" not in str(raised.value)
    assert "password@" not in str(raised.value)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    notes: list[str] = []
    write(tmp_path / "t.csv", "caption,uri,image_width,labels,label\nA cat,a.png,8,x,3\n")
    (row,) = listed(tmp_path / "t.csv", note=notes.append)
    assert (row.uri, row.target) == (str(tmp_path / "a.png"), 3)
    assert notes == [f"left out of {tmp_path}/t.csv: columns caption, image_width, labels"]


# Parquet --------------------------------------------------------------------------------------------------------------


def parquet(path: Path | io.BytesIO, columns: dict[str, Any], **options: Any) -> Any:
    pq.write_table(pa.table(columns), path, **options)
    return path


def images_in_parquet(count: int, *, path: bool = True) -> Any:
    cells = [{"bytes": png(k), "path": f"{k}.png"} for k in range(count)]
    fields = [pa.field("bytes", pa.binary()), *([pa.field("path", pa.string())] if path else [])]
    return pa.array([{k: v for k, v in cell.items() if path or k == "bytes"} for cell in cells], pa.struct(fields))


def test_parquet_with_paths(tmp_path: Path) -> None:
    columns = {
        "file": ["a.png", "b.png", "c.png"],
        "label": pa.array([1, None, 3]),
        "image_id": pa.array([5, 6, 7], "uint32"),
    }
    rows = listed(parquet(tmp_path / "t.parquet", columns))
    assert rows == [
        Row(k, 5 + k, f"{tmp_path}/{n}.png", target=t) for k, (n, t) in enumerate([("a", 1), ("b", None), ("c", 3)])
    ]
    floats = {"uri": ["a.png", "b.png"], "target": pa.array([2.0, None])}  # as pandas writes them
    assert [row.target for row in listed(parquet(tmp_path / "f.parquet", floats))] == [2, None]


@pytest.mark.parametrize("place", ["local", "store"])
@pytest.mark.parametrize("kind", ["struct", "struct without path", "bytes"])
def test_parquet_with_images_inside(tmp_path: Path, store: Callable[..., str], place: str, kind: str) -> None:
    image = images_in_parquet(11, path=kind == "struct")
    if kind == "bytes":
        image = pa.array([png(k) for k in range(11)])
    file = tmp_path / "images.parquet"
    parquet(file, {"image": image, "label": list(range(11)), "caption": ["x"] * 11}, row_group_size=4)
    source = str(file)
    if place == "store":
        source = store({"images.parquet": file.read_bytes()}) + "/images.parquet"
    rows = listed(source)
    names = [f"{k}.png" if kind == "struct" else f"row {k}" for k in range(11)]
    assert rows == [Row(k, k, names[k], source, k, None, k) for k in range(11)]
    for k in (0, 3, 4, 10, 5, 0):
        assert read_bytes(rows[k], 10**6) == png(k)
    with pytest.raises(PermanentError, match="fewer rows"):
        read_bytes(rows[0]._replace(offset=11), 10**6)


def test_a_data_set_that_datasets_wrote_is_read(tmp_path: Path) -> None:
    """Of images that it was given, of paths that it reads when it writes, and of a row without one."""
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "1.png", png(1))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    cells = [Image.open(io.BytesIO(png(0))), str(tmp_path / "1.png"), None, png(3)]
    rows = [features.encode_example({"image": cell, "label": k % 2}) for k, cell in enumerate(cells)]
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    # With a fingerprint, as some versions of dill cannot compute one of a table.
    made = datasets.Dataset(
        datasets.table.InMemoryTable(table), datasets.DatasetInfo(features=features), fingerprint="0"
    )
    made.to_parquet(str(tmp_path / "set.parquet"), batch_size=3)
    found = listed(tmp_path / "set.parquet", classes=2)
    assert [name.rpartition("/")[2] for name in uris(found)] == ["row 0", "1.png", "row 2", "row 3"]
    assert [row.target for row in found] == [0, 1, 0, 1]
    for k in (0, 1, 3):
        image = read_image_bytes(read_bytes(found[k], 10_000, ONCE), "image")
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(png(k)))))
    with pytest.raises(PermanentError, match="holds no image"):
        read_bytes(found[2], 10_000, ONCE)


def test_images_alone_and_several_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        parquet(tmp_path / f"{name}.parquet", {"img": images_in_parquet(2, path=False)})
    rows = listed(tmp_path / "*.parquet")
    assert [(row.container, row.offset) for row in rows] == [
        (f"{tmp_path}/{n}.parquet", k) for n in "ab" for k in (0, 1)
    ]


def test_a_row_without_an_image_is_an_error_of_its_own(tmp_path: Path) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([None, {"bytes": None, "path": "x.png"}, {"bytes": b"", "path": None}], kind)
    rows = listed(parquet(tmp_path / "t.parquet", {"image": cells}))
    assert uris(rows) == ["row 0", "x.png", "row 2"]
    for row, reason in zip(rows, ("no image", "no such file", "empty"), strict=True):
        with pytest.raises(PermanentError, match=reason):
            read_bytes(row, 100)


@pytest.mark.parametrize("place", ["local", "store"])
def test_a_row_with_a_path_alone_is_the_image_there(tmp_path: Path, store: Callable[..., str], place: str) -> None:
    """Hugging Face's data sets have images so that were not put into them."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    names = ["a.png", "in/b.png", str(tmp_path / "c.png")]
    cells = pa.array([{"bytes": None, "path": name} for name in names], kind)
    contents = {"a.png": png(0), "in/b.png": png(1)}
    for name, content in contents.items():
        write(tmp_path / "sets" / name, content)
    source: Path | str = parquet(tmp_path / "sets" / "t.parquet", {"image": cells})
    write(tmp_path / "c.png", png(2))
    if place == "store":
        source = store({**contents, "t.parquet": Path(source).read_bytes()}) + "/t.parquet"
    rows = listed(source)
    assert uris(rows) == names
    assert [read_bytes(row, 10**6, ONCE) for row in rows] == [png(k) for k in range(3)]
    with pytest.raises(PermanentError, match="larger than the limit"):
        read_bytes(rows[0], 10, ONCE)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"name": ["a"], "size": [1]}, "has the columns name, size; expected a column uri"),
        ({"uri": ["a"], "label": ["cat"]}, "row 0: the target is 'cat'"),
        ({"uri": ["a"], "label": [1.5]}, "row 0: the target is 1.5"),
        ({"uri": ["a"], "label": [True]}, "row 0: the target is True"),
        ({"uri": ["a", "b"], "label": [1, -1]}, "row 1: the target is -1"),
        ({"uri": ["a", None]}, "row 1: the place of the image is None"),
        ({"uri": [7]}, "row 0: the place of the image is 7"),
        ({"uri": ["a"], "image_id": [None]}, "row 0: the image id is None"),
        ({"uri": ["a"], "image_id": [2**32]}, "row 0: the image id is 4294967296"),
        ({"uri": ["a"], "Label": [1], "label": [2]}, "several columns 'label'"),
    ],
)
def test_bad_parquet_is_refused_in_a_line(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        listed(parquet(tmp_path / "t.parquet", columns))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all", b"PAR1" + bytes(100) + b"\x10\0\0\0PAR1"])
def test_damaged_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="not a Parquet file, or damaged") as raised:
        listed(write(tmp_path / "t.parquet", content))
    assert "\n" not in str(raised.value)


def test_parquet_damaged_later_costs_its_rows(tmp_path: Path) -> None:
    file = parquet(tmp_path / "t.parquet", {"image": images_in_parquet(3)})
    rows = listed(file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(PermanentError, match="cannot be read"):
        read_bytes(rows[0], 10**6)


# Tar ------------------------------------------------------------------------------------------------------------------

MEMBERS: list[tuple[str, bytes]] = [
    ("0001.png", png(1)),
    ("0001.cls", b"3\n"),
    ("0001.json", b"{}"),
    ("../0002.jpg", png(2)),
    ("/etc/0003.jpg", png(3)),
    ("/etc/0003.cls", b"5"),
    ("a/b/0004.cls", b"7"),
    ("a/b/0004.jpeg", png(4)),
    ("a/b/0004.second.png", png(5)),
    ("a/._0004.png", b"AppleDouble"),
    ("empty.png", b""),
    ("long" * 60 + ".png", png(6)),
]
IMAGES = [(name, content) for name, content in MEMBERS if name[-3:] in ("png", "jpg", "peg") and "._" not in name]
CLASSES = [3, None, 5, 7, 7, None, None]


def tar_of(path: Path, members: Sequence[tuple[str, bytes]], mode: Any = "w", **options: Any) -> Path:
    with tarfile.open(path, mode, **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("place", ["local", "store"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tars_images_are_read_in_place_whatever_they_are_called(
    tmp_path: Path, store: Callable[..., str], place: str, format: int
) -> None:
    file = tar_of(tmp_path / "t.tar", MEMBERS, format=format)
    source = str(file)
    if place == "store":
        source = store({"t.tar": file.read_bytes()}) + "/t.tar"
    before = sorted(tmp_path.rglob("*")), sorted(tmp_path.parent.iterdir())
    notes: list[str] = []
    rows = listed(source, note=notes.append)
    assert [(row.uri, row.target, row.container) for row in rows] == [
        (name, target, source) for (name, _), target in zip(IMAGES, CLASSES, strict=True)
    ]
    for row, (_, content) in zip(rows, IMAGES, strict=True):
        assert row.size == len(content)
        assert file.read_bytes()[row.offset :][: row.size] == content
        if content:
            assert read_bytes(row, 10**6) == content
        else:
            with pytest.raises(PermanentError, match="empty"):
                read_bytes(row, 10**6)
    assert notes == [f"left out of {source}: 1 .json"]
    assert (sorted(tmp_path.rglob("*")), sorted(tmp_path.parent.iterdir())) == before
    assert [row.target for row in listed(source, target="model")] == [None] * 7


def test_a_plain_tar_of_links_and_folders(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, kind in [("d", tarfile.DIRTYPE), ("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("a.png")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    notes: list[str] = []
    assert uris(listed(tmp_path / "t.tar", note=notes.append)) == ["a.png"]
    assert notes == [f"left out of {tmp_path}/t.tar: 2 links or special files"]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_refused(tmp_path: Path, mode: str) -> None:
    file = tar_of(tmp_path / "t.tar", MEMBERS, mode)
    with pytest.raises(ValueError, match="compressed .*in place: unpack"):
        listed(file)


def test_damaged_tars_are_refused_where_they_are_damaged(tmp_path: Path) -> None:
    content = tar_of(tmp_path / "t.tar", [(f"{k}.png", png(k)) for k in range(4)]).read_bytes()
    third = content.index(b"2.png\0")
    for damaged, reason in [
        (b"", "not a tar file"),
        (b"no tar" * 200, "not a tar file"),
        (content[: third + 512 + 5], "truncated: it ends within 2.png"),
        (content[: third + 100], "damaged after 1.png"),
        (content[:third] + b"\xff" * 512 + content[third + 512 :], "damaged after 1.png"),
    ]:
        with pytest.raises(ValueError, match=reason) as raised:
            listed(write(tmp_path / "d.tar", damaged))
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="no images"):
        listed(tar_of(tmp_path / "e.tar", [("a.txt", b"x")]))
    for text in (b"cat", b"", b"-1", b"1.5"):
        with pytest.raises(ValueError, match=r"a\.cls holds .*expected a class index"):
            listed(tar_of(tmp_path / "c.tar", [("a.png", png()), ("a.cls", text)]))


def test_a_tar_cut_later_costs_its_rows(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "t.tar", MEMBERS)
    rows = listed(file)
    file.write_bytes(file.read_bytes()[: (rows[-1].offset or 0) + 3])
    assert read_bytes(rows[0], 10**6) == png(1)
    with pytest.raises(PermanentError, match="shorter than it was"):
        read_bytes(rows[-1], 10**6)


def test_listing_a_tar_keeps_none_of_its_members_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tar_of(tmp_path / "t.tar", [(f"{k}.png", b"x") for k in range(50)])
    opened: list[tarfile.TarFile] = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *rest, **options: opened.append(real(*rest, **options)) or opened[0])
    for k, row in enumerate(list_rows([str(file)])):
        assert row.uri == f"{k}.png"
        assert len(opened[0].members) <= 1
    assert k == 49


# Bytes, and failures of two kinds -------------------------------------------------------------------------------------


def test_files_that_stay_unreadable_are_told_from_those_that_may_be_read_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "empty.png", b"")
    write(tmp_path / "large.png", bytes(101))
    write(tmp_path / "exact.png", bytes(100))
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in [
        ("gone.png", "no such file"), ("empty.png", "empty"), ("large.png", "larger than the limit of 100 bytes"),
        ("", "directory"), ("pipe.png", "not a regular file"), ("exact.png/x", "no such file"), ("n" * 300, "too long"),
        ("null\0.png", "cannot be read"),
    ]:  # fmt: skip
        with pytest.raises(PermanentError, match=reason) as raised:
            read_bytes(Row(0, 0, f"{tmp_path}/{name}"), 100)
        assert "\n" not in str(raised.value)
    assert read_bytes(Row(0, 0, str(tmp_path / "exact.png")), 100) == bytes(100)
    with pytest.raises(PermanentError, match="larger"):
        read_bytes(Row(0, 0, "a.png", "t.tar", 0, 101), 100)
    for number in (errno.EACCES, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE):

        def fail(*_: Any, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "stat", fail)
        with pytest.raises(TransientError, match="cannot be read"):
            read_bytes(Row(0, 0, str(tmp_path / "exact.png")), 100, ONCE)


def test_whatever_a_store_raises_may_pass_and_nothing_secret_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        size = None

        def cat_file(self, path: str, **_: Any) -> bytes:
            raise RuntimeError(f"403, url='https://host/a.png?token=secret'\nsecond line about {path}")

    monkeypatch.setattr(image_bytes, "filesystem_of", lambda url: (Broken(), "a.png"))
    with pytest.raises(TransientError) as raised:
        read_bytes(Row(0, 0, "https://host/a.png?token=secret"), 100, ONCE)
    assert str(raised.value) == "cannot be read: 403, url='https://host/a.png' (RuntimeError)"


def test_a_stores_files(store: Callable[..., str]) -> None:
    address = store({"a.png": bytes(100), "large.png": bytes(101), "empty.png": b""})
    assert read_bytes(Row(0, 0, f"{address}/a.png"), 100) == bytes(100)
    for name, reason in [("large.png", "larger"), ("empty.png", "empty")]:
        with pytest.raises(PermanentError, match=reason):
            read_bytes(Row(0, 0, f"{address}/{name}"), 100)
    with pytest.raises(TransientError, match="no such file"):
        read_bytes(Row(0, 0, f"{address}/gone.png"), 100, ONCE)


def test_an_empty_object_is_told_where_the_store_refuses_its_range(
    store: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = store({"empty.png": b"", "full.png": b"x"})
    system = type(fsspec.filesystem("memory"))

    def refuse(self: Any, path: str, **_: Any) -> bytes:
        raise OSError("InvalidRange")

    monkeypatch.setattr(system, "cat_file", refuse)
    with pytest.raises(PermanentError, match="empty"):
        read_bytes(Row(0, 0, f"{address}/empty.png"), 100, ONCE)
    with pytest.raises(TransientError, match="InvalidRange"):
        read_bytes(Row(0, 0, f"{address}/full.png"), 100, ONCE)


def test_a_server_that_gives_no_parts_of_a_tar_is_told(
    store: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = store({"a.tar": b"x" * 100})
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", lambda self, path, **_: b"x" * 100)
    with pytest.raises(PermanentError, match="no parts of files"):
        read_bytes(Row(0, 0, "a.png", f"{address}/a.tar", 10, 20), 100, ONCE)


def test_what_may_pass_is_tried_again_with_growing_pauses() -> None:
    pauses: list[float] = []
    outcomes = iter([TransientError("one"), TransientError("two"), b"done"])

    def call() -> bytes:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    retry = Retry(4, 0.5, 30.0, seed=0, sleep=pauses.append)
    assert retry.call(call) == b"done"
    assert len(pauses) == 2
    for pause, most in zip(pauses, (0.5, 1.0), strict=True):
        assert most / 2 < pause <= most


def test_retries_end() -> None:
    pauses: list[float] = []
    calls: list[int] = []

    def always(error: Exception) -> None:
        calls.append(1)
        raise error

    with pytest.raises(TransientError, match="busy"):
        Retry(8, 1.0, 10.0, seed=1, sleep=pauses.append).call(lambda: always(TransientError("busy")))
    assert (len(calls), len(pauses)) == (8, 7)
    assert all(most / 2 < pause <= most for pause, most in zip(pauses, (1, 2, 4, 8, 10, 10, 10), strict=True))
    with pytest.raises(PermanentError):
        Retry(8, sleep=pauses.append).call(lambda: always(PermanentError("gone")))
    assert (len(calls), len(pauses)) == (9, 7)
    again: list[float] = []
    with pytest.raises(TransientError):
        Retry(8, 1.0, 10.0, seed=1, sleep=again.append).call(lambda: always(TransientError("busy")))
    assert again == pauses


def test_reading_retries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    real, fails = os.stat, iter([True, True, False])

    def stat(path: Any, *rest: Any, **options: Any) -> Any:
        if path == str(tmp_path / "a.png") and next(fails):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *rest, **options)

    write(tmp_path / "a.png", b"content")
    monkeypatch.setattr(os, "stat", stat)
    assert read_bytes(Row(0, 0, str(tmp_path / "a.png")), 100, Retry(sleep=pauses.append)) == b"content"
    assert len(pauses) == 2


def test_whole_numbers() -> None:
    assert [found.whole_number(value, 0, 9) for value in (3, "3", " 3 ", 3.0, "3.0", "3.", 0, 9)] == [*[3] * 6, 0, 9]
    assert [found.whole_number(value, 0, 9) for value in (True, "x", "", None, 1.5, float("nan"), -1, 10, [1])] == [
        None
    ] * 9
    assert [found.whole_number(value, 0, 99) for value in ("1_0", "1.5", "1e1", "-3", "nan")] == [None] * 5


# Images of bytes ------------------------------------------------------------------------------------------------------


def test_bytes_are_read_as_a_file_is(tmp_path: Path) -> None:
    for k, content in enumerate(
        [png(), png()[:60], b"", b"no image", png_content(Image.new("LA", (3, 9), (9, 8)), IMAGE)]
    ):
        path = write(tmp_path / f"{k}.png", content)
        results: list[Any] = []
        for read in (lambda path=path: read_image(path), lambda path=path, data=content: read_image_bytes(data, path)):
            try:
                results.append(np.asarray(read()).tolist())
            except ImageReadError as error:
                results.append((error.path, error.reason))
        assert results[0] == results[1]


def test_the_limit_of_pixels_holds_before_they_are_decoded() -> None:
    assert read_image_bytes(png(), "a.png", max_pixels=72).size == (8, 9)
    with pytest.raises(ImageReadError, match=r"a\.png: too many pixels \(8 x 9; at most 71\)"):
        read_image_bytes(png(), "a.png", max_pixels=71)
    with pytest.raises(ImageReadError, match="too many pixels"):
        read_image_bytes(png()[:50], "a.png", max_pixels=71)
