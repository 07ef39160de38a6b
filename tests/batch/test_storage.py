"""Storage: whole files, here and in an object store, and never outside its folder."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from fampe_fast.batch import stores
from fampe_fast.batch.retry import Retry
from fampe_fast.batch.storage import Storage, open_storage
from fampe_fast.batch.urls import check_url, hide_secrets, is_url, local_path_of, without_secrets

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "out" if request.param == "local" else f"memory://{tmp_path.name}/out/")


def test_files_are_written_read_listed_and_removed(storage: Storage) -> None:
    assert list(storage.names()) == []
    assert not storage.exists("maps/000/000001.parquet")
    storage.write("maps/000/000001.parquet", b"one")
    storage.write("maps/001/001000.parquet", b"")
    storage.write("maps-other.json", b"x")
    storage.write("maps/000/000001.parquet", b"other")
    assert storage.read("maps/000/000001.parquet") == b"other"
    assert (storage.size("maps/000/000001.parquet"), storage.size("maps/001/001000.parquet")) == (5, 0)
    assert sorted(storage.names()) == ["maps-other.json", "maps/000/000001.parquet", "maps/001/001000.parquet"]
    assert list(storage.names("maps/")) == ["maps/000/000001.parquet", "maps/001/001000.parquet"]
    assert list(storage.names("maps/00")) == ["maps/000/000001.parquet", "maps/001/001000.parquet"]
    assert list(storage.names("maps/000/")) == ["maps/000/000001.parquet"]
    assert list(storage.names("log/")) == []
    assert storage.exists("maps-other.json")
    assert not storage.exists("maps")
    with storage.open("maps/000/000001.parquet") as file:
        file.seek(1)
        assert file.read(2) == b"th"
    storage.remove("maps-other.json")
    storage.remove("maps-other.json")
    assert not storage.exists("maps-other.json")
    with pytest.raises(FileNotFoundError):
        storage.read("maps-other.json")
    with pytest.raises(FileNotFoundError):
        storage.size("maps-other.json")


@pytest.mark.parametrize(
    "name", ["../x", "a/../x", "/x", "a//b", "", "a/", "./a", ".hidden", "a/.b", "a\\b", "C:x", "a\0", "a\n"]
)
def test_no_name_leads_outside_the_folder(storage: Storage, name: str) -> None:
    for call in (storage.read, storage.exists, storage.size, storage.remove, lambda name: storage.write(name, b"x")):
        with pytest.raises(ValueError, match="not a file name"):
            call(name)
    assert list(storage.names()) == []


def test_a_killed_writers_leftovers_are_not_listed_and_are_removed(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("maps/000/000001.parquet", b"x")
    left = tmp_path / "maps" / "000" / f".000002.parquet.{_host()}-999999999-0123abcd.tmp"
    alive = left.with_name(left.name.replace("999999999", str(os.getpid())))
    for path in (left, alive):
        path.write_bytes(b"half")
    assert list(storage.names()) == ["maps/000/000001.parquet"]
    storage.remove_leftovers()
    assert not left.exists()
    assert alive.exists()


def _host() -> str:
    from fampe_fast import files

    return files._HOST


def test_an_object_store_gets_one_put(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage = open_storage(f"memory://{tmp_path.name}")
    calls: list[tuple[str, bytes]] = []
    system = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(system, "pipe_file", lambda self, path, value, **_: calls.append((path, value)))
    monkeypatch.setattr(system, "open", None)
    storage.write("maps/000/000001.parquet", b"content")
    assert calls == [(f"/{tmp_path.name}/maps/000/000001.parquet", b"content")]


# Stores that fail; against S3's own interface in test_s3.py, where that can be had ------------------------------------


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a store fail so many times at one of its operations."""
    system = type(fsspec.filesystem("memory"))

    def fail(operation: str, times: int, error: Exception) -> list[float]:
        real, pauses, left = getattr(system, operation), [], [times]

        def call(self: Any, *values: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise error
            return real(self, *values, **options)

        monkeypatch.setattr(system, operation, call)
        monkeypatch.setattr(stores, "Retry", lambda: Retry(sleep=pauses.append))
        return pauses

    return fail


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("info", lambda storage: storage.exists("a")),
        ("info", lambda storage: storage.size("a")),
        ("find", lambda storage: list(storage.names())),
        ("cat_file", lambda storage: storage.read("a")),
        ("cat_file", lambda storage: storage.open("a").read()),
        ("pipe_file", lambda storage: storage.write("b", b"x")),
        ("pipe_file", lambda storage: storage.check_writable()),
        ("rm_file", lambda storage: storage.remove("a")),
    ],
)
def test_a_store_that_fails_is_asked_again(failing: Any, tmp_path: Path, operation: str, call: Any) -> None:
    storage = open_storage(f"memory://{tmp_path.name}")
    storage.write("a", b"content")
    expected = call(storage)
    storage.write("a", b"content")
    pauses = failing(operation, 3, RuntimeError("slow down: https://h/x?key=secret"))  # of no kind that is known
    assert call(storage) == expected
    assert len(pauses) == 3
    storage.write("a", b"content")
    failing(operation, 4, RuntimeError("slow down: https://h/x?key=secret"))
    with pytest.raises(OSError, match=rf"^memory://{tmp_path.name}.*: the store fails \(slow down: https://h/x\)$"):
        call(storage)
    pauses = failing(operation, 1, PermissionError("Forbidden"))
    with pytest.raises(PermissionError, match=r"the store refuses \(Forbidden\); fsspec needs credentials"):
        call(storage)
    assert pauses == []


def test_a_folder_that_a_stores_own_pages_have_made_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"memory://{tmp_path.name}")
    root = f"/{tmp_path.name}"
    found = [f"{root}/", f"{root}/maps/", f"{root}/a.json", f"{root}/.hidden"]
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", lambda self, path: found)
    assert list(storage.names()) == ["a.json"]


def test_a_remote_file_is_read_as_a_local_one(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    local, remote = open_storage(tmp_path / "out"), open_storage(f"memory://{tmp_path.name}")
    for storage in (local, remote):
        storage.write("a", content)
    with local.open("a") as one, remote.open("a") as two:
        for file in (one, two):
            file.seek(-10, io.SEEK_END)
        assert one.read() == two.read() == content[-10:]
        assert one.read(1) == two.read(1) == b""
        for place, count in [(0, 3), (70_000, 5), (69_999, 200_000), (255_999, 10), (300_000, 10)]:
            assert one.seek(place) == two.seek(place)
            assert one.read(count) == two.read(count)
            assert one.tell() == two.tell()
            assert one.seek(-1, io.SEEK_CUR) == two.seek(-1, io.SEEK_CUR)
            assert one.read(2) == two.read(2)


def test_a_storage_travels_to_another_process(storage: Storage) -> None:
    storage.write("a", b"x")
    other = pickle.loads(pickle.dumps(storage))
    assert other == storage
    assert hash(other) == hash(storage)
    assert other.read("a") == b"x"


def test_places_that_cannot_be_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place, reason in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "is a file"),
        ("", "is empty"),
        ("nonsense://x", "no such kind of address"),
        ("s3://name:password@bucket/x", "name or password"),
    ]:
        with pytest.raises(ValueError, match=reason) as found:
            open_storage(place)
        assert "password@" not in str(found.value)
        assert "\n" not in str(found.value)


def test_file_addresses_are_local(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path}/out")
    assert storage == open_storage(tmp_path / "out")
    assert storage.local_path == tmp_path / "out"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, **_: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(ImportError, match=r"pip install 'fampe_fast\[s3\]'"):
        open_storage("s3://bucket/out")
    with pytest.raises(ImportError, match=r"pip install 'fampe_fast\[gs\]'"):
        open_storage("gs://bucket/out")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"pip install 'fampe_fast\[batch\]'"):
        open_storage("s3://bucket/out")


def test_addresses_are_told_from_paths() -> None:
    assert all(
        map(is_url, ["s3://b/k", "https://h/x", "zip://a.png::s3://b/x.zip", "simplecache::s3://b/x", "memory://x"])
    )
    assert not any(map(is_url, ["a/b", "/a/b", "C:\\x", "a::b", "what: ever//x", ""]))
    assert local_path_of("file:///a/b") == local_path_of("/a/b") == "/a/b"
    assert local_path_of("s3://a") is None
    path = Path("/a folder/caf\u00e9 100%.png")
    assert local_path_of(path.as_uri()) == local_path_of(f"file://{path}") == str(path)
    assert local_path_of("/a%20b") == "/a%20b"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://name:pass@host/a.png?token=1", "https://host/a.png"),
        ("s3://name:pass@bucket/a?b#c@d", "s3://bucket/a?b#c@d"),
        ("simplecache::https://n:p@h/x?t=1", "simplecache::https://h/x"),
        ("zip://a.png::https://n:p@h/x.zip?t=1", "zip://a.png::https://h/x.zip"),
        ("https://host?token=1", "https://host"),
        ("/a?b", "/a?b"),
    ],
)
def test_secrets_are_hidden(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
    assert hide_secrets(f"404, url='{address}'") == (
        f"404, url='{shown}'" if is_url(address) else f"404, url='{address}'"
    )
    if ":p" in address:
        with pytest.raises(ValueError, match="name or password") as found:
            check_url(address)
        assert ":p" not in str(found.value).replace("::", "")
