"""Compute rows of finished shards again, and compare the new results with the stored ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..answers.comparison import Comparison, compare
from ..answers.environment import processor_of, reasons_for_other_bits, versions_now
from ..answers.result import Result, RowError, RowResult
from ..answers.summaries import Summary
from ..models.classifier import Classifier
from ..ops.backends import choice
from .plan import Plan, read_rows
from .reading import shape_of
from .shards import decode_shard, shard_metadata, shard_name
from .storage import Storage
from .worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa


class Recomputed(NamedTuple):
    """A row that was computed again."""

    position: int
    shard: int
    image_id: int
    address: str
    stored: Result
    found: Result
    comparison: Comparison


class Recomputer:
    """Computes stored rows again with a worker, in the original batches and chunks."""

    def __init__(
        self,
        storage: Storage,
        plan: Plan,
        *,
        device: str | None = None,
        classifier: Classifier | None = None,
        processes: int | None = None,
        trust_model: bool = False,
    ) -> None:
        """Load the plan's model.

        Args:
            storage: storage of the shards.
            plan: plan of the shards.
            device: device of any kind; None for the plan's kind.
            classifier: the plan's model, if it is already loaded.
            processes: number of decoding processes; 0 decodes in this process, which an image may then kill.
            trust_model: load the model even if it is a program.

        Raises:
            ValueError: another model or method than the plan's.
            ImportError: a package that the plan needs is not installed.
        """
        self._storage, self._plan = storage, plan
        self._device = torch.device(device or plan.device)
        backend = plan.backend
        if self._device.type != plan.device:
            backend = choice(self._device)[0]
        self._environment = {"device": self._device.type, "backend": backend, "processor": processor_of(self._device)}
        here = replace(plan, device=self._device.type, backend=backend)
        self._worker = Worker(
            storage,
            device=str(self._device),
            classifier=classifier,
            processes=processes,
            trust_model=trust_model,
            plan=here,
        )

    def close(self) -> None:
        """End the decoding process."""
        self._worker.close()

    def differences(self, described: dict[str, Any]) -> list[str]:
        """List why the maps of a shard may have other bits here.

        Args:
            described: metadata of the shard.
        """
        plan, versions = self._plan, described.get("versions") or {}
        there = {"device": plan.device, "backend": plan.backend, "processor": described.get("processor")}
        return reasons_for_other_bits({**there, **versions}, {**self._environment, **versions_now()})

    def differences_of(self, shards: Sequence[int]) -> list[str]:
        """List these reasons for any of several shards."""
        found = (self.differences(shard_metadata(self._storage, shard)) for shard in shards)
        return list(dict.fromkeys(reason for one in found for reason in one))

    def rows(self, shard: int, positions: Sequence[int]) -> list[Recomputed]:
        """Compute some rows of a shard again.

        Args:
            shard: number of the shard.
            positions: positions of the rows in the plan.

        Raises:
            OSError, ValueError: the shard cannot be read.
            RuntimeError: the device fails.
        """
        rows = read_rows(self._storage, self._plan, shard)
        described = shard_metadata(self._storage, shard)
        with self._storage.open(shard_name(shard)) as file:
            table = decode_shard(file)
        exact = not self.differences(described)
        first, size = rows[0].position, self._plan.batch_size
        made: dict[int, list[Result]] = {}
        compared = []
        for position in positions:
            batch, place = divmod(position - first, size)
            if batch not in made:
                made[batch] = self._worker.batch(rows[batch * size : (batch + 1) * size], int(described["chunk"]))
            row, stored, found = rows[position - first], stored_result(table, position - first), made[batch][place]
            comparison = compare(stored, found, exact=exact)
            compared.append(Recomputed(position, shard, row.image_id, row.address, stored, found, comparison))
        return compared


def stored_result(table: pa.Table, place: int) -> Result:
    """Read a row of a shard as the result it was made from."""
    row = table.slice(place, 1)
    values = row.drop_columns(["map"]).to_pylist()[0]
    if values["error"] is not None:
        return RowError(values["error"], values["error_kind"])
    numbers = row["map"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(shape_of(table))
    return RowResult(
        values["target"],
        values["class"],
        values["probability"],
        values["predicted"],
        values["cutoff"],
        values["map_scale"],
        numbers,
        Summary(*(math.nan if values[name] is None else values[name] for name in Summary._fields)),
        values["overlay"],
    )
