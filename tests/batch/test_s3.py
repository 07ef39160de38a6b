"""Object stores: runs whose images and results are behind S3's interface, also where that fails for a time."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fampe_fast.batch import image_bytes, stores
from fampe_fast.batch.local import run_local
from fampe_fast.batch.manifest import MANIFEST
from fampe_fast.batch.model_spec import ModelSpec
from fampe_fast.batch.plan import PLAN
from fampe_fast.batch.reading import read_maps
from fampe_fast.batch.retry import Retry
from fampe_fast.batch.shards import shard_name
from fampe_fast.batch.storage import Storage, open_storage
from fampe_fast.cli import DONE, SOME_FAILED, UNUSABLE, main
from fampe_fast.models.embedded import load_embedded_classifier

from .small_runs import digest_of, draw, draw_with_errors, planned

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'fampe_fast[s3]'")
moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")

ROOT = Path(__file__).resolve().parents[2]
RUN = ["--decoders", "0", "--device", "cpu"]
UNAVAILABLE = ("503 Service Unavailable", "ServiceUnavailable")
NO_KEY = ("403 Forbidden", "InvalidAccessKeyId")


class Store:
    """moto's S3 on a port of this machine, behind a door that notes requests and refuses some.

    Attributes:
        seen: method, path and the range of bytes of each request since ``open``.
        sent: bytes of the answers.
        refuse: takes method and path; says of a refusal its status and code.
        stored: called after each put that was let in, with the path.
    """

    def __init__(self) -> None:
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # which would tell of every request
        self._moto = moto.DomainDispatcherApplication(moto.create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=moto.MotoRequestHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.open()

    def open(self) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.sent = 0
        self.refuse: Callable[[str, str], tuple[str, str] | None] = lambda method, path: None
        self.stored: Callable[[str], None] = lambda path: None

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.seen.append((method, path, environ.get("HTTP_RANGE", "")))
        refusal = self.refuse(method, path)
        if refusal is None:
            body = b"".join(self._moto(environ, start))
            if method == "PUT":
                self.stored(path)
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = refusal
            body = b"" if method == "HEAD" else f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        self.sent += len(body)
        return [body]


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    store = Store()
    yield store
    store.close()


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """An S3 that this process and its children find as they would find another one than Amazon's."""
    settings = {
        "AWS_ENDPOINT_URL": server.address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # of botocore's own, so that it is ours that count
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "FAMPE_FAST_BACKEND": "reference",
        "OMP_NUM_THREADS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    server.open()
    yield server
    server.open()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(store: Store, tmp_path: Path) -> str:
    """Make a bucket of this test's own."""
    name = f"bucket-{abs(hash(tmp_path))}"
    s3fs.S3FileSystem().mkdir(name)
    store.open()
    return f"s3://{name}"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note the pauses between attempts in place of waiting."""
    found: list[float] = []
    for module in (stores, image_bytes):
        monkeypatch.setattr(module, "Retry", lambda: Retry(sleep=found.append))
    return found


def put(folder: Path, address: str) -> str:
    """Copy a folder's files into a bucket."""
    s3fs.S3FileSystem().put(f"{folder}/", f"{address}/", recursive=True)
    return address


def plan(dest: Path | str, source: Path | str, **changes: Any) -> Storage:
    sizes = {"model": ModelSpec(source="embedded"), "rows_per_shard": 3, "batch_size": 2, "internal_batch_size": 2}
    return planned(dest, source, load_embedded_classifier(), **(sizes | changes))  # type: ignore[arg-type]


def run(storage: Storage, **options: Any) -> None:
    run_local(storage, devices=["cpu"], workers=0, classifier=load_embedded_classifier(), **options)


def rows_of(storage: Storage) -> dict[str, list[Any]]:
    """Read all columns but the places of the images."""
    tables = [pq.ParquetFile(pa.BufferReader(storage.read(name))).read() for name in storage.names("maps/")]
    found: dict[str, list[Any]] = pa.concat_tables(tables).drop_columns(["uri", "container"]).to_pydict()
    return found


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_run_in_a_store_has_the_bytes_of_a_local_one(
    store: Store, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = draw_with_errors(tmp_path / "photos", 8)
    there = put(photos, f"{bucket}/photos")
    remote, near, local = (
        plan(dest, source)
        for dest, source in ((f"{bucket}/maps", there), (tmp_path / "near", there), (tmp_path / "local", photos))
    )
    run(near)
    run(local)
    # With a process that decodes, and that finds the store by the same settings.
    assert main(["batch", "--out", remote.address, "--decoders", "1", "--device", "cpu"]) == SOME_FAILED
    assert digest_of(remote) == digest_of(near)
    rows = rows_of(remote)
    assert str(rows) == str(rows_of(local))
    assert sum(error is not None for error in rows["error"]) == 3
    assert remote.exists(MANIFEST)
    assert not list(remote.names("attempts/"))
    assert f"all 3 shards are in {bucket}/maps: 6 of 9 images have a map" in capsys.readouterr().err

    # What reads a run reads it there, too.
    parts = list(read_maps(remote.address))
    for part, same in zip(parts, read_maps(local.address), strict=True):
        np.testing.assert_array_equal(part["map"], same["map"])
    assert main(["verify", remote.address, "--sample", "4", "--device", "cpu"]) == DONE
    for to in ("npz", "png"):
        out = [f"{bucket}/{to}", str(tmp_path / to)]
        for place, of in zip(out, (remote, local), strict=True):
            assert main(["export", of.address, "--to", to, "--out", place]) == SOME_FAILED
        names = list(open_storage(out[0]).names())
        assert names == list(open_storage(out[1]).names())
        assert sum(name.endswith(f".{to}") for name in names) == 6
    with np.load(io.BytesIO(open_storage(f"{bucket}/npz").read("000000/0000000001.npz"))) as archive:
        np.testing.assert_array_equal(archive["map"], parts[0]["map"][1])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_that_is_killed_at_a_put_goes_on(store: Store, bucket: str, tmp_path: Path, moment: str) -> None:
    """Of the second shard: what came in of it, or the answer to it, is lost."""
    there = put(draw(tmp_path / "photos", 9), f"{bucket}/photos")
    whole, storage = (plan(f"{bucket}/{name}", there) for name in ("whole", "killed"))
    run(whole)
    words = [sys.executable, "-m", "fampe_fast", "batch", "--out", storage.address, *RUN]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)

    def kill(path: str) -> None:
        if path.endswith(shard_name(1)):
            process.kill()
            process.wait()

    if moment == "after":
        store.stored = kill
    else:
        store.refuse = lambda method, path: kill(path) if method == "PUT" else None  # type: ignore[func-returns-value]
    assert process.wait() == -signal.SIGKILL
    store.open()
    done = list(storage.names("maps/"))
    assert done in ([shard_name(0)], [shard_name(0), shard_name(1)])
    assert list(storage.names("attempts/"))
    assert main(["batch", "--out", storage.address, *RUN]) == DONE
    assert digest_of(storage) == digest_of(whole)
    assert not list(storage.names("attempts/"))


# Failures -------------------------------------------------------------------------------------------------------------


def test_a_store_that_fails_for_a_time_costs_attempts_and_no_rows(
    store: Store, bucket: str, tmp_path: Path, pauses: list[float]
) -> None:
    there = put(draw(tmp_path / "photos", 6), f"{bucket}/photos")
    local = plan(tmp_path / "local", there)
    run(local)
    known: set[tuple[str, str]] = set()

    def the_first(method: str, path: str) -> tuple[str, str] | None:
        new = (method, path) not in known
        known.add((method, path))
        return UNAVAILABLE if new else None

    assert not pauses
    store.refuse = the_first
    storage = plan(f"{bucket}/maps", there)
    run(storage)
    assert len(pauses) >= 6 + 2 + 2  # images, shards, the plan and its rows
    assert digest_of(storage) == digest_of(local)
    assert not any(error for part in read_maps(storage.address, columns=["error"]) for error in part["error"])


def test_an_image_that_the_store_does_not_give_is_given_another_time(
    store: Store, bucket: str, tmp_path: Path, pauses: list[float]
) -> None:
    there = put(draw(tmp_path / "photos", 6), f"{bucket}/photos")
    whole, storage = (plan(f"{bucket}/{name}", there) for name in ("whole", "maps"))
    run(whole)
    store.refuse = lambda method, path: UNAVAILABLE if path.endswith("004.png") else None
    assert main(["batch", "--out", storage.address, *RUN]) == SOME_FAILED
    assert len(pauses) == 3
    found = [error for part in read_maps(storage.address, columns=["error"]) for error in part["error"]]
    assert found[:4] + found[5:] == [None] * 5
    assert found[4].startswith("cannot be read: ")
    store.open()
    assert main(["batch", "--out", storage.address, *RUN, "--retry-errors"]) == DONE
    assert digest_of(storage) == digest_of(whole)


@pytest.mark.usefixtures("pauses")
def test_a_store_that_takes_no_results_ends_the_run_with_whole_shards(
    store: Store, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = put(draw(tmp_path / "photos", 9), f"{bucket}/photos")
    whole, storage = (plan(f"{bucket}/{name}", there) for name in ("whole", "maps"))
    run(whole)
    store.refuse = lambda method, path: UNAVAILABLE if path.endswith(shard_name(1)) else None
    assert main(["batch", "--out", storage.address, *RUN]) == UNUSABLE
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"fampe-fast: {storage.address}/{shard_name(1)}: the store fails (")
    store.open()
    assert list(storage.names("maps/")) == [shard_name(0)]
    assert not list(storage.names("attempts/"))  # the shard is not to blame
    assert main(["batch", "--out", storage.address, *RUN]) == DONE
    assert digest_of(storage) == digest_of(whole)


@pytest.mark.usefixtures("pauses")
def test_a_plan_is_not_made_anew_because_the_store_does_not_show_it(
    store: Store, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = put(draw(tmp_path / "photos", 3), f"{bucket}/photos")
    storage = plan(f"{bucket}/maps", there)
    before = storage.read(PLAN)
    store.refuse = lambda method, path: UNAVAILABLE if path.endswith(PLAN) and method == "HEAD" else None
    assert main(["batch", there, "--out", storage.address, *RUN]) == UNUSABLE
    assert f"{storage.address}/{PLAN}: the store fails (" in capsys.readouterr().err
    store.open()
    assert storage.read(PLAN) == before


@pytest.mark.usefixtures("pauses")
def test_a_bucket_that_is_not_there_or_refuses_is_one_line_before_any_work(
    store: Store, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fampe_fast.cli import model_and_methods

    loaded: list[object] = []
    monkeypatch.setattr(model_and_methods, "classifier_of", loaded.append)
    photos = draw(tmp_path / "photos", 1)
    put(photos, f"{bucket}/photos")

    def said(source: Path | str, out: Path | str) -> str:
        assert main(["batch", str(source), "--out", str(out), *RUN]) == UNUSABLE
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert not loaded
        return text

    out = tmp_path / "out"
    for source, there in (
        ("s3://no-bucket/photos", "s3://no-bucket/photos"),
        (f"{bucket}/other", f"{bucket}/other"),
        ("s3://no-bucket/*.png", "s3://no-bucket"),
        (f"{bucket}/other/**/*.png", f"{bucket}/other"),
    ):
        assert f"there is no {there}; expected a folder" in said(source, out)
    assert "s3://no-bucket/maps/.fampe_fast: there is no such file or bucket" in said(photos, "s3://no-bucket/maps")
    for method in ("PUT", "DELETE"):  # of keys that may only read, or not remove
        store.refuse = lambda asked, path, method=method: NO_KEY if asked == method else None  # type: ignore[misc]
        assert f"{bucket}/maps/.fampe_fast: the store refuses (" in said(photos, f"{bucket}/maps")
    store.refuse = lambda method, path: NO_KEY
    assert f"{bucket}/photos: the store refuses (" in said(f"{bucket}/photos", out)
    assert "credentials that may read and write there" in said(f"{bucket}/photos", out)
    assert f"{bucket}/maps/plan.json: the store refuses (" in said(photos, f"{bucket}/maps")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    assert "Unable to locate credentials" in said(f"{bucket}/photos", out)
    assert not out.exists()


# Sources --------------------------------------------------------------------------------------------------------------


def test_tars_and_parquet_files_are_read_by_byte_range(store: Store, bucket: str, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", 4, (200, 180))
    images = [path.read_bytes() for path in sorted(photos.iterdir())]
    (tmp_path / "sets").mkdir()
    with tarfile.open(tmp_path / "sets" / "a.tar", "w") as tar:
        for k, content in enumerate(images):
            for name, data in ((f"{k}.png", content), (f"{k}.cls", b"%d" % k)):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    cells = {
        "image": [{"bytes": content, "path": f"{k}.png"} for k, content in enumerate(images)],
        "label": [*range(4)],
    }
    pq.write_table(pa.table(cells), tmp_path / "sets" / "b.parquet", row_group_size=2)
    there = put(tmp_path / "sets", f"{bucket}/sets")
    local = plan(tmp_path / "local", photos, target=None)
    run(local)
    for name in ("a.tar", "b.parquet", "*.tar"):
        storage = plan(tmp_path / f"from {name[-4:]} {name[0] == '*'}", f"{there}/{name}")
        store.open()
        run(storage)
        assert [row["target"] for row in pq.read_table(storage.local_path / "maps").to_pylist()] == [0, 1, 2, 3]
        asked = [(path, part) for method, path, part in store.seen if method == "GET"]
        assert asked
        assert all(part.startswith("bytes=") for _, part in asked)
        if name.endswith(".tar"):
            lengths = [int(end) - int(start) + 1 for start, end in (part[6:].split("-") for _, part in asked)]
            assert lengths == [len(content) for content in images]
    # The images are the same, wherever they lie; their classes were the model's choice there.
    assert rows_of(local)["predicted"] == rows_of(storage)["predicted"]


def test_what_a_stores_own_pages_make_is_no_file(bucket: str, tmp_path: Path) -> None:
    """There, a folder is an empty object whose name ends with a slash."""
    there = put(draw(tmp_path / "photos", 2), f"{bucket}/photos")
    system = s3fs.S3FileSystem()
    for folder in (f"{there}/", f"{there}/older/", f"{bucket}/maps/"):
        system.call_s3("put_object", Bucket=bucket[5:], Key=folder[len(bucket) + 1 :], Body=b"")
    storage = plan(f"{bucket}/maps", there)
    assert list(storage.names()) == ["plan.json", "plan/00000.parquet"]


# Files ----------------------------------------------------------------------------------------------------------------


def test_what_other_processes_write_is_seen(bucket: str) -> None:
    storage = open_storage(f"{bucket}/maps")
    storage.write(shard_name(0), b"0")
    assert list(storage.names("maps/")) == [shard_name(0)]
    other = s3fs.S3FileSystem(skip_instance_cache=True)
    other.pipe_file(f"{bucket}/maps/{shard_name(1)}", b"one")
    other.pipe_file(f"{bucket}/maps/{shard_name(0)}", b"other")
    assert storage.exists(shard_name(1))
    assert (storage.size(shard_name(1)), storage.size(shard_name(0))) == (3, 5)
    assert list(storage.names("maps/")) == [shard_name(0), shard_name(1)]


def test_a_part_of_a_file_costs_no_more_than_it(store: Store, bucket: str) -> None:
    storage = open_storage(bucket)
    content = np.random.default_rng(0).bytes(2**20)
    storage.write("large", content)
    store.open()
    with storage.open("large") as file:
        assert file.seek(-100, io.SEEK_END) == 2**20 - 100
        assert file.read() == content[-100:]
        file.seek(500_000)
        assert file.read(10) + file.read(90) == content[500_000:500_100]
        file.seek(0)
        assert file.read(300_000) == content[:300_000]
        assert file.tell() == 300_000
    assert [method for method, *_ in store.seen].count("HEAD") == 1
    assert store.sent < 450_000
    assert len(store.seen) <= 6
