"""Write the maps of a batch run in other formats: archives, pictures, or one array store."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ..answers.overlays import overlay_png
from ..answers.result import RowError, RowResult, attribution_of
from ..files import MARK, json_content, json_text, npz_content
from ..models.classifier import Classifier
from .decoding import Decoder, Decoders
from .extras import needs
from .plan import Plan, Row, position_of, read_rows
from .planning import method_of
from .recompute import stored_result
from .shards import decode_shard, finished_shards, shard_name
from .storage import Storage

if TYPE_CHECKING:
    import zarr

Format = Literal["npz", "png", "zarr"]
FORMATS: tuple[Format, ...] = ("npz", "png", "zarr")
EXPORT = "export.json"
"""The file that describes a folder of exported maps; written first, so that exports are never mixed."""
KIND = "batch export"
MAP = "exported map"
"""The kind of the archives."""
STORE = "maps.zarr"

_DONE = "done"
_MAPS_PER_CHUNK = 32


class Exported(NamedTuple):
    """The result of an export."""

    maps: int
    """Written now."""
    earlier: int
    """Maps written by an earlier run of the same export."""
    errors: int
    """Rows without a map, which are left out (in a Zarr store: NaN)."""
    undrawn: int
    """Maps without a picture: the image cannot be read again, or the map holds NaN."""
    missing: int
    """Shards that the run has not made yet."""


class Export:
    """An export of some rows of a run to a separate place."""

    def __init__(
        self,
        storage: Storage,
        plan: Plan,
        out: Storage,
        to: Format,
        *,
        ids: Sequence[int] | None = None,
        limit: int | None = None,
        trust_model: bool = False,
        classifier: Classifier | None = None,
        processes: int = 1,
    ) -> None:
        """Choose the rows and the place: a new one, or one of the same interrupted export.

        Args:
            storage: the run's storage.
            plan: the run's plan.
            out: folder or URL of the export.
            to: the format.
            ids: image ids, in any order; None for all.
            limit: number of first rows to export; None for all.
            trust_model: load the model even if it is a program, for ``png`` if the run has stored no pictures.
            classifier: the plan's model, if it is already loaded; only its transform is used.
            processes: number of decoding processes; 0 decodes in this process, which an image may then kill.

        Raises:
            ValueError: an unknown id, or a place with other content.
            ImportError: zarr is not installed.
        """
        self._storage, self._plan, self._out, self._to = storage, plan, out, to
        positions: Sequence[int] = range(plan.images)
        if ids is not None:
            positions = sorted({position_of(storage, plan, image_id) for image_id in ids})
        self._positions = positions if limit is None else positions[:limit]
        self._trust_model, self._classifier, self._processes = trust_model, classifier, processes
        self._decoders: Decoders | None = None
        if to == "zarr":
            _zarr()
            if out.local_path is None:
                raise ValueError(f"{out}: a Zarr store is written to a local folder; copy it from there")
        self._take(
            out, {"plan": plan.key, "rows": plan.rows_sha256, "to": to, "ids": ids and sorted(ids), "limit": limit}
        )
        self._store: zarr.Group | None = None

    @property
    def rows(self) -> int:
        """Number of rows to export."""
        return len(self._positions)

    def _take(self, out: Storage, asked: dict[str, Any]) -> None:
        asked = json.loads(json_text(asked))
        if out.exists(EXPORT):
            try:
                found = json.loads(out.read(EXPORT))
            except ValueError:
                found = None
            if not isinstance(found, dict) or found.get(MARK) != KIND:
                raise ValueError(f"{out}/{EXPORT} was not written by {MARK}: choose an empty place (--out)")
            changed = [
                f"{name}: {found.get(name)} there, {asked[name]} now"
                for name in asked
                if found.get(name) != asked[name]
            ]
            if changed:
                raise ValueError(f"{out} holds another export ({'; '.join(changed)}): choose another place (--out)")
            return
        if (other := next(iter(out.names()), None)) is not None:
            raise ValueError(f"{out} has other content ({other}): choose an empty place (--out)")
        out.write(EXPORT, json_content(KIND, asked).encode())

    def run(self, on_rows: Callable[[int], None] = lambda rows: None) -> Exported:
        """Write the remaining maps, shard by shard.

        Args:
            on_rows: called after each shard with the number of its rows.

        Raises:
            OSError: a shard cannot be read, or the results cannot be written.
            ValueError: a file of the run is not a shard.
        """
        there = finished_shards(self._storage)
        total = Exported(0, 0, 0, 0, 0)
        self._out.remove_leftovers()
        try:
            for shard, places in self._by_shard():
                if shard not in there:
                    total = total._replace(missing=total.missing + 1)
                    continue
                # A shard whose failed images were retried has another size.
                size = self._storage.size(shard_name(shard))
                found = self._earlier(shard, size)
                if found is None:
                    found = self._shard(shard, places, size)
                total = Exported(*map(sum, zip(total, found, strict=True)))
                on_rows(len(places))
        finally:
            if self._decoders is not None:
                self._decoders.close()
        return total

    def _by_shard(self) -> Iterator[tuple[int, list[int]]]:
        """Group the rows by shard: (shard, positions in it)."""
        size = self._plan.rows_per_shard
        for shard, positions in groupby(self._positions, lambda position: position // size):
            yield shard, [position % size for position in positions]

    def _earlier(self, shard: int, size: int) -> Exported | None:
        """Read an earlier run's result of a shard; None if it has not finished this version of the shard."""
        if not self._out.exists(f"{_DONE}/{shard:06d}"):
            return None
        found = json.loads(self._out.read(f"{_DONE}/{shard:06d}"))
        return Exported(0, found["maps"], found["errors"], found["undrawn"], 0) if found["size"] == size else None

    def _shard(self, shard: int, places: list[int], size: int) -> Exported:
        """Write the maps of a shard, and mark it as done."""
        rows = read_rows(self._storage, self._plan, shard)
        with self._storage.open(shard_name(shard)) as file:
            table = decode_shard(file)
        chosen = [(rows[place], stored_result(table, place)) for place in places]
        found = [(row, result) for row, result in chosen if isinstance(result, RowResult)]
        failures: list[RowError] = []
        if self._to == "zarr":
            self._write_zarr(chosen)
        else:
            for row, result in found:
                content = self._archive(row, result) if self._to == "npz" else self._picture(row, result)
                if isinstance(content, RowError):
                    failures.append(content)
                else:
                    self._out.write(f"{shard:06d}/{row.image_id:010d}.{self._to}", content)
        counts = {"maps": len(found) - len(failures), "errors": len(chosen) - len(found), "undrawn": len(failures)}
        if all(failure.kind == "permanent" for failure in failures):  # otherwise the next run tries again
            self._out.write(f"{_DONE}/{shard:06d}", json_content(_DONE, {"size": size, **counts}).encode())
        return Exported(earlier=0, missing=0, **counts)

    def _archive(self, row: Row, result: RowResult) -> bytes:
        """Encode a map in the format of ``explain``, without the image and the seconds."""
        return npz_content(
            MAP,
            f"{self._plan.key} {row.image_id}",
            map=attribution_of(result),
            image_id=row.image_id,
            uri=row.address,
            target=result.target,
            class_name=result.class_name,
            predicted=result.predicted,
            probability=result.probability,
            cutoff=np.nan if result.cutoff is None else result.cutoff,
            settings=json_text({**self._plan.identity, **self._plan.everything}),
        )

    def _picture(self, row: Row, result: RowResult) -> bytes | RowError:
        """Return the picture that the run has stored, or draw it."""
        if result.overlay is not None:
            return result.overlay
        attribution = attribution_of(result)
        if not np.isfinite(attribution).all():
            return RowError("the map holds NaN or infinity", "permanent")
        if self._decoders is None:
            classifier = self._classifier or self._plan.model.load("cpu", trust_model=self._trust_model)
            method_of(self._plan, classifier)  # refuses another model, which may transform images differently
            self._decoders = Decoders(Decoder.of(self._plan, classifier.transform), self._processes)
        decode = self._decoders.one_by_one if self._decoders.processes else self._decoders.here
        (pixels,) = decode([row])
        if isinstance(pixels, RowError):
            return pixels
        picture = overlay_png(pixels, attribution)
        assert picture is not None
        return picture

    # Zarr -------------------------------------------------------------------------------------------------------------

    def _write_zarr(self, chosen: list[tuple[Row, RowResult | RowError]]) -> None:
        store = self._opened()
        first = self._place_of(chosen[0][0])
        rows = slice(first, first + len(chosen))
        found = [result if isinstance(result, RowResult) else None for _, result in chosen]
        maps = np.full((len(chosen), *self._plan.shape), np.nan, np.float32)
        for k, result in enumerate(found):
            if result is not None:
                maps[k] = attribution_of(result)
        columns: dict[str, Any] = {
            "maps": maps,
            "image_id": np.array([row.image_id for row, _ in chosen], np.uint32),
            "target": np.array([-1 if one is None else one.target for one in found], np.int32),
            "predicted": np.array([-1 if one is None else one.predicted for one in found], np.int32),
            "probability": np.array([np.nan if one is None else one.probability for one in found], np.float32),
            "cutoff": np.array(
                [np.nan if one is None or one.cutoff is None else one.cutoff for one in found], np.float32
            ),
            "uri": np.array([row.address for row, _ in chosen], dtype=object),
            "class_name": np.array(["" if one is None else one.class_name for one in found], dtype=object),
            "error": np.array([one.reason if isinstance(one, RowError) else "" for _, one in chosen], dtype=object),
        }
        for name, values in columns.items():
            array: Any = store[name]
            array[rows] = values

    def _place_of(self, row: Row) -> int:
        if isinstance(self._positions, range):
            return row.position
        return bisect_left(self._positions, row.position)

    def _opened(self) -> zarr.Group:
        if self._store is not None:
            return self._store
        assert self._out.local_path is not None
        store: zarr.Group = _zarr().open_group(str(self._out.local_path / STORE), mode="a", zarr_format=3)
        store.attrs.update(
            json.loads(json_text({**self._plan.identity, **self._plan.everything, "plan": self._plan.key}))
        )
        count, shape = len(self._positions), self._plan.shape
        # So that no chunk belongs to two shards and must be read back.
        chunk = math.gcd(_MAPS_PER_CHUNK, self._plan.rows_per_shard)
        rows = min(self._plan.rows_per_shard, count)
        kinds: dict[str, Any] = {"image_id": "uint32", "target": "int32", "predicted": "int32"}
        kinds |= {"probability": "float32", "cutoff": "float32", "uri": str, "class_name": str, "error": str}
        layout: dict[str, tuple[Any, Any, Any]] = {name: ((count,), (rows,), kind) for name, kind in kinds.items()}
        layout["maps"] = ((count, *shape), (chunk, *shape), "float32")
        for name, (whole, chunks, kind) in layout.items():
            if name not in store:  # an earlier run may have created it
                empty = {"int32": -1, "float32": float("nan"), "uint32": 0}.get(kind, "")
                store.create_array(name, shape=whole, chunks=chunks, dtype=kind, fill_value=empty)
        self._store = store
        return store


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise needs("zarr", "zarr", "to export maps as a Zarr store") from error
    if int(zarr.__version__.partition(".")[0]) < 3:
        raise ValueError(f"zarr {zarr.__version__} cannot write version 3 of the format: update it")
    return zarr
