"""Fix the images and settings of a run in a plan, which all later runs and workers read."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import warn
from ..files import MARK, json_content, json_text
from ..images.reading import MAX_PIXELS
from .extras import parquet_modules
from .model_spec import ModelSpec
from .storage import Storage
from .urls import without_secrets

if TYPE_CHECKING:
    import pyarrow as pa

PLAN = "plan.json"
"""The file that completes a plan: it is written after all rows."""
KIND = "batch plan"
ROWS_PER_PIECE = 1_000_000
"""Rows per file of the plan; planning needs memory for only one file, whatever the size of the set."""
MAX_BYTES = 2**28
FORMAT = 2
"""Format of the files; in format 1 a map is a fixed-size list, of which pyarrow before 26 cannot read a null."""

_ROWS_PER_GROUP = 8192  # rows read together, about 16 shards


class Row(NamedTuple):
    """An image of a plan.

    Attributes:
        position: its position in the plan, 0 to ``Plan.images`` - 1.
        image_id: its id in the random stream, 0 to 2^32 - 2.
        uri: absolute path or URL; for an image inside a file, the member's name or "row 7".
        container: the tar or Parquet file that contains it; None for an image file.
        offset: offset of its bytes in a tar, or its row in a Parquet file; else None.
        size: number of its bytes in a tar; else None.
        target: the class to explain; None for the model's prediction.
    """

    position: int
    image_id: int
    uri: str
    container: str | None = None
    offset: int | None = None
    size: int | None = None
    target: int | None = None

    @property
    def shown_uri(self) -> str:
        """The ``uri`` without secrets in a URL."""
        return self.uri if self.container is not None else without_secrets(self.uri)

    @property
    def shown_container(self) -> str | None:
        """The ``container`` without secrets in a URL."""
        return None if self.container is None else without_secrets(self.container)

    @property
    def address(self) -> str:
        """A readable address of the image, without secrets in a URL."""
        return self.shown_uri if self.container is None else f"{self.shown_container}::{self.uri}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the bytes of a run's shards depend on, and further settings of workers.

    Attributes:
        sources: the given sources, with local ones absolute, without secrets in URLs.
        target: the class of every image; "model" for the model's prediction; None for the sources' targets, if any.
        sample: number of images drawn at random from the sources; None for all.
        seed: seed of the methods' random stream and of the sample.
        rows_per_shard: rows per file of maps.
        batch_size: rows explained together.
        internal_batch_size: samples per model pass.
        method: name of the method.
        options: options of ``create_method``, in plain values.
        model: the model to load.
        identity: the model's name and fingerprint, as from ``identity_of``.
        everything: everything else that the method's maps depend on, as from ``everything_of``.
        device: kind of device, "cpu" or "cuda".
        precision: precision of the model's passes.
        backend: backend of the primitives.
        threads: torch's number of threads on a CPU.
        map_dtype: dtype of the stored maps, "float16" or "float32".
        overlay: whether a picture of each map is stored.
        max_pixels: largest number of pixels of an image.
        max_bytes: largest size of an image file.
        shape: (C, H, W) of the stored maps.
        classes: number of the model's classes.
        versions: versions of the software that made the plan.
        format: format of the files, 1 or 2.
        images: number of rows of the plan.
        rows_per_piece: rows per file of the plan.
        rows_sha256: SHA-256 of all rows.
        key: 16 hexadecimal digits, a hash of everything that the shards' bytes depend on.
    """

    sources: tuple[str, ...]
    target: int | Literal["model"] | None = None
    sample: int | None = None
    seed: int = 0
    rows_per_shard: int = 512
    batch_size: int = 8
    internal_batch_size: int = 8
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    model: ModelSpec
    identity: Mapping[str, Any]
    everything: Mapping[str, Any]
    device: str
    precision: str
    backend: str
    threads: int
    map_dtype: Literal["float16", "float32"] = "float16"
    overlay: bool = False
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    shape: tuple[int, int, int]
    classes: int
    versions: Mapping[str, str]
    format: int = FORMAT
    images: int = 0
    rows_per_piece: int = ROWS_PER_PIECE
    rows_sha256: str = ""
    key: str = ""

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.rows_per_shard)

    def rows_of(self, shard: int) -> range:
        """Return the positions of a shard's rows.

        Raises:
            IndexError: there is no such shard.
        """
        if not 0 <= shard < self.shards:
            raise IndexError(f"there is no shard {shard}: the plan has {self.shards}")
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.images))


# Fields that do not change the bytes of the maps, or are determined by others.
_UNCOMPARED = (
    "options",
    "model",
    "identity",
    "threads",
    "versions",
    "format",
    "images",
    "rows_per_piece",
    "rows_sha256",
    "key",
)
# Fields without influence on the shards' bytes, as the rows and the files' names contain them.
_UNKEYED = (
    "sources",
    "target",
    "sample",
    "options",
    "model",
    "identity",
    "versions",
    "images",
    "rows_per_piece",
    "key",
)


def differences(plan: Plan, other: Plan) -> list[str]:
    """List the differences of two plans that affect their maps, such as "seed: 0 there, 7 now".

    Args:
        plan: the existing plan.
        other: the requested plan.
    """
    there, now = (_flat(_compared(one)) for one in (plan, other))
    return [
        f"{name}: {_shown(there.get(name))} there, {_shown(now.get(name))} now"
        for name in dict.fromkeys((*there, *now))
        if there.get(name) != now.get(name)
    ]


def _compared(plan: Plan) -> dict[str, Any]:
    values = _values(plan)
    names = plan.model.class_names
    return {
        **{name: value for name, value in values.items() if name not in _UNCOMPARED},
        "model": plan.identity.get("fingerprint"),
        "class_names": None if names is None else hashlib.sha256(json_text(names).encode()).hexdigest()[:16],
    }


def _flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Write nested values as one level, "everything.config.steps"."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{start}{name}.") if isinstance(value, Mapping) else {f"{start}{name}": value}
    return found


def _shown(value: object) -> str:
    text = json_text(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _values(plan: Plan) -> dict[str, Any]:
    """Return a plan's values for JSON."""
    values: dict[str, Any] = json.loads(json_text(asdict(plan)))
    return values


def _key_of(plan: Plan) -> str:
    keyed = {name: value for name, value in _values(plan).items() if name not in _UNKEYED}
    keyed |= {"model": plan.identity.get("fingerprint"), "class_names": plan.model.class_names}
    return hashlib.sha256(json_text(keyed, sort_keys=True).encode()).hexdigest()[:16]


# Writing --------------------------------------------------------------------------------------------------------------


def write_plan(dest: Storage, plan: Plan, rows: Iterable[Row]) -> Plan:
    """Write a plan: first its rows in pieces, then ``plan.json``, which completes it.

    Args:
        dest: an empty storage, or one with the remains of an interrupted planning.
        plan: the plan, without the fields that depend on the rows.
        rows: in order, ``position`` counting from 0.

    Returns:
        The plan, with ``images``, ``rows_sha256`` and ``key``.

    Raises:
        ValueError: ``dest`` has other content, or there are no rows.
        OSError: the plan cannot be written.
    """
    unfinished = _unfinished(dest)
    remaining = iter(rows)
    digest = hashlib.sha256()
    images = 0
    try:
        while piece := list(islice(remaining, plan.rows_per_piece)):
            for row in piece:
                digest.update(json.dumps(row[1:]).encode() + b"\n")
            name = _piece(images // plan.rows_per_piece)
            unfinished.add(name)
            dest.write(name, _encoded(piece))
            unfinished.remove(name)
            images += len(piece)
        if not images:
            raise ValueError("there are no images in the sources")
    except BaseException:
        unfinished |= {_piece(number) for number in range(images // plan.rows_per_piece)}
        raise
    finally:
        for name in unfinished:
            dest.remove(name)
    whole = replace(plan, images=images, rows_sha256=digest.hexdigest())
    whole = replace(whole, key=_key_of(whole))
    dest.write(PLAN, json_content(KIND, _values(whole)).encode())
    return read_back(dest)


def _piece(number: int) -> str:
    return f"plan/{number:05d}.parquet"


def _unfinished(dest: Storage) -> set[str]:
    """List the files that an interrupted planning has left.

    Raises:
        ValueError: there is other content.
    """
    found = set()
    for name in dest.names():
        if not (name.startswith("plan/") and _is_piece(dest, name)):
            raise ValueError(
                f"{dest} has other content ({name}) and no {PLAN}: choose an empty place for the results (--out)"
            )
        found.add(name)
    return found


def _is_piece(dest: Storage, name: str) -> bool:
    pa, pq = parquet_modules()
    try:
        with dest.open(name) as file:
            found = pq.read_metadata(file).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return bool(found.get(MARK.encode()) == KIND.encode())


def _schema() -> pa.Schema:
    pa, _ = parquet_modules()
    columns = {
        "image_id": pa.uint32(),
        "uri": pa.string(),
        "container": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "target": pa.int32(),
    }
    return pa.schema(list(columns.items()), metadata={MARK: KIND})


def _encoded(rows: list[Row]) -> bytes:
    pa, pq = parquet_modules()
    columns = list(zip(*rows, strict=True))[1:]
    table = pa.table([list(column) for column in columns], schema=_schema())
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    return buffer.getvalue()


# Reading --------------------------------------------------------------------------------------------------------------


def read_plan(dest: Storage) -> Plan | None:
    """Read the plan; None if there is none and the storage can be used for one.

    Raises:
        ValueError: there is other content, or a plan of a newer version.
        OSError: it cannot be read.
    """
    if not dest.exists(PLAN):
        _unfinished(dest)
        return None
    return read_back(dest)


def plan_of(storage: Storage) -> Plan:
    """Read the plan of a run.

    Raises:
        ValueError: there is no plan, or it cannot be read.
    """
    if not storage.exists(PLAN):
        raise ValueError(f"nothing is planned in {storage}: expected the folder or URL of a batch run")
    return read_back(storage)


def read_back(dest: Storage) -> Plan:
    """Read the existing plan.

    Raises:
        ValueError: the file is not a plan, or one of a newer version.
        OSError: it is not there or cannot be read.
    """
    try:
        found = json.loads(dest.read(PLAN))
        if not isinstance(found, dict) or found.get(MARK) != KIND:
            raise ValueError(f"expected what {MARK} calls {KIND!r}")
        if found["format"] not in (1, FORMAT):
            raise ValueError(f"its format is {found['format']}, and this version reads 1 and {FORMAT}")
        values = {entry.name: found[entry.name] for entry in fields(Plan)}
        values |= {"model": ModelSpec.from_json(found["model"])}
        values |= {name: tuple(found[name]) for name in ("sources", "shape")}
        return Plan(**values)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{dest}/{PLAN} is not a plan of a batch run: {error}") from error


def read_rows(dest: Storage, plan: Plan, shard: int) -> list[Row]:
    """Read the rows of a shard, and only the necessary part of the plan.

    Raises:
        IndexError: there is no such shard.
        OSError, ValueError: the plan's rows cannot be read.
    """
    positions = plan.rows_of(shard)
    found: list[Row] = []
    position = positions.start
    while position < positions.stop:
        piece, inside = divmod(position, plan.rows_per_piece)
        group, first = divmod(inside, _ROWS_PER_GROUP)
        columns = _group(dest, plan.rows_sha256, piece, group).slice(first, positions.stop - position)
        values = zip(*(column.to_pylist() for column in columns.columns), strict=True)
        found += [Row(position + k, *row) for k, row in enumerate(values)]
        position += columns.num_rows
    return found


@lru_cache(maxsize=4)
def _group(dest: Storage, rows_sha256: str, piece: int, group: int) -> pa.Table:
    pa, pq = parquet_modules()
    name = _piece(piece)
    try:
        with dest.open(name) as file:
            table = pq.ParquetFile(file).read_row_group(group, columns=_schema().names)
    except pa.ArrowException as error:
        raise ValueError(f"{dest}/{name} is damaged: {error}") from error
    if table.num_rows == 0:
        raise ValueError(f"{dest}/{name} is damaged: it has fewer rows than the plan")
    return table


def every_row(dest: Storage, plan: Plan) -> Iterator[Row]:
    """Read all rows of a plan, shard by shard."""
    for shard in range(plan.shards):
        yield from read_rows(dest, plan, shard)


def position_of(dest: Storage, plan: Plan, image_id: int) -> int:
    """Find the row of an image by its id, reading only ids until it is found.

    Raises:
        ValueError: there is no such image.
        OSError: the plan cannot be read.
    """
    pa, pq = parquet_modules()
    import pyarrow.compute as pc

    if 0 <= image_id < 2**32:
        for piece in range(-(-plan.images // plan.rows_per_piece)):
            with dest.open(_piece(piece)) as file:
                ids = pq.ParquetFile(file).read(columns=["image_id"])["image_id"]
            place = int(pc.index(ids, pa.scalar(image_id, pa.uint32())).as_py())
            if place >= 0:
                return piece * plan.rows_per_piece + place
    raise ValueError(f"no image of the plan in {dest} has the id {image_id}")


def check_rows(dest: Storage, plan: Plan) -> None:
    """Compare all rows with the plan's digest of them.

    Raises:
        ValueError: they differ.
    """
    digest = hashlib.sha256()
    for row in every_row(dest, plan):
        digest.update(json.dumps(row[1:]).encode() + b"\n")
    if digest.hexdigest() != plan.rows_sha256:
        raise ValueError(f"the rows in {dest}/plan are not the plan's original rows")


def warn_of_versions(plan: Plan, now: Mapping[str, str]) -> None:
    """Warn if this process has other versions than the plan was made with."""
    changed = [
        f"{name} {old} there, {now.get(name)} now" for name, old in plan.versions.items() if now.get(name) != old
    ]
    if changed:
        warn(f"the plan was made with other versions, which may change the maps' last bits: {'; '.join(changed)}")
