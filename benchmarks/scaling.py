"""Compute how long a data set takes, and which part is the bottleneck: the tables of docs/results/scaling.md.

    python -m benchmarks.scaling

The figures of one worker are measured or, where they say so, assumed. Closed formulas take them to any number of
images, devices and passes; a simulation of shards, decoders, a bounded buffer, a writer behind and failures takes the
same figures through time, and says where the formulas hold.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

ROWS = 512
"""Rows of a shard."""
BATCH = 8
"""Images that are explained together."""
GROUP = 8
"""Images that a process decodes at once."""


@dataclass(frozen=True)
class Worker:
    """One device with its decoding cores and its writer.

    Attributes:
        name: of it.
        pass_seconds: of the device, for one pass, forward and backward, of one image.
        decoders: cores that decode for it.
        store_seconds: of the one thread that summarises, encodes and stores, for one map.
        start_seconds: until a process has loaded its model.
    """

    name: str
    pass_seconds: float
    decoders: int
    store_seconds: float
    start_seconds: float


@dataclass(frozen=True)
class Photographs:
    """The images of a data set.

    Attributes:
        name: of them.
        decode_seconds: of a core, for one.
        bytes: of one.
    """

    name: str
    decode_seconds: float
    bytes: float


@dataclass(frozen=True)
class Store:
    """Where the images come from and the maps go.

    Attributes:
        name: of it.
        requests_per_image: to read them.
        requests_per_second: that it answers in all; infinity where it does not matter.
        bytes_per_second: that it reads and writes in all.
    """

    name: str
    requests_per_image: float
    requests_per_second: float
    bytes_per_second: float


# One worker -----------------------------------------------------------------------------------------------------------

# The pass is measured, the rest assumed or of a Xeon's core: ResNet-50, FAMPE with CUDA graphs, bf16, batches of 32,
# T = 2, N = 20, chunks of 64, docs/results/performance.md.
GPU = Worker("H100 (pass measured)", 118e-6, decoders=8, store_seconds=0.0018, start_seconds=30)
# Measured: MobileNetV2, FAMPE in batches of 8, docs/results/performance.md.
CPU = Worker("two cores (measured)", 0.0242, decoders=1, store_seconds=0.0018, start_seconds=30)
SMALL = Photographs("500 x 375", 1 / 255, 41e3)
PHONE = Photographs("12 megapixels", 1 / 6.5, 1e6)
PARQUET = Store("in Parquet files", 1 / 100, math.inf, 12.5e9)
LOOSE = Store("loose, one prefix of S3", 1, 5500, 12.5e9)
MAP_BYTES = 91e3
"""Of a stored map: 224 x 224, one channel, float16, zstd."""
PLAN_BYTES = {"image files": 9.2, "members of tar files": 14.0}
"""Of a row of the plan."""

FIGURES = (
    ("device, a pass of an image, H100", f"{GPU.pass_seconds * 1e6:.0f} µs", "measured: ResNet-50, bf16, CUDA graphs"),
    ("device, a pass of an image, two cores", f"{CPU.pass_seconds * 1e3:.1f} ms", "measured: MobileNetV2"),
    ("decoding, 500 x 375, a core", f"{SMALL.decode_seconds * 1e3:.1f} ms", "measured"),
    ("decoding, 12 megapixels, a core", f"{PHONE.decode_seconds * 1e3:.0f} ms", "measured"),
    ("summaries, encoding and SHA-256 of a map, a core", f"{GPU.store_seconds * 1e3:.1f} ms", "measured"),
    ("a stored map", f"{MAP_BYTES / 1e3:.0f} KB", "measured"),
    (
        "a row of the plan",
        f"{PLAN_BYTES['image files']:.0f} to {PLAN_BYTES['members of tar files']:.0f} bytes",
        "measured",
    ),
    ("decoding cores per device", f"{GPU.decoders}", "assumed"),
    ("start of a process", f"{GPU.start_seconds:.0f} s", "assumed"),
    ("the store, all workers together", f"{PARQUET.bytes_per_second / 1e9:.1f} GB/s", "assumed: 100 Gbit/s"),
    ("requests for loose files", f"{LOOSE.requests_per_second:,}/s", "S3's limit for reading, per partitioned prefix"),
)


# Closed formulas ------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """What a run takes."""

    seconds: float
    device_hours: float
    bottleneck: str
    busy: float
    """Share of the time in which the devices compute."""


_SHARED = ("requests", "bandwidth")


def limits(
    worker: Worker, photographs: Photographs, store: Store, devices: int, passes: int, map_bytes: float = MAP_BYTES
) -> dict[str, float]:
    """Give the images per second that each part of a run allows at most."""
    return {
        "device": devices / (passes * worker.pass_seconds),
        "decoding": devices * worker.decoders / photographs.decode_seconds,
        "storing": devices / worker.store_seconds,
        "requests": store.requests_per_second / store.requests_per_image,
        "bandwidth": store.bytes_per_second / (photographs.bytes + map_bytes),
    }


def estimate(
    worker: Worker,
    photographs: Photographs,
    store: Store,
    *,
    images: int,
    devices: int,
    passes: int,
    failures: float = 0.0,
    rows: int = ROWS,
) -> Estimate:
    """Estimate a run: everything happens at once, so that the slowest part alone counts.

    Args:
        worker: a device and what is beside it.
        photographs: the images.
        store: where they are.
        images: how many.
        devices: how many.
        passes: of an image.
        failures: of a device, per hour; each costs half a shard and a start.
        rows: of a shard; the device that has one more than the others ends last.
    """
    allowed = limits(worker, photographs, store, devices, passes)
    # Shards are whole, so that some devices have more to do than others; what all share is never idle for that.
    largest = min(images, math.ceil(math.ceil(images / rows) / devices) * rows)
    times = {
        name: (images if name in _SHARED else largest * devices) / per_second for name, per_second in allowed.items()
    }
    bottleneck = max(times, key=lambda name: times[name])
    shard_seconds = times[bottleneck] * rows / largest
    lost = failures / 3600 * (shard_seconds / 2 + worker.start_seconds)
    seconds = times[bottleneck] * (1 + lost) + worker.start_seconds
    busy = images * passes * worker.pass_seconds / devices / seconds
    return Estimate(seconds, seconds * devices / 3600, bottleneck, busy)


# Simulation -----------------------------------------------------------------------------------------------------------


class ShardTimes(NamedTuple):
    """What a shard took, as the log of a run says."""

    explaining: float
    waiting: float
    storing: float


class Simulated(NamedTuple):
    """What a simulated run took."""

    seconds: float
    busy: float
    """Share of the time in which the devices computed."""
    lost: int
    """Shards that were begun in vain."""


class _Writer:
    """Stores a shard while the next one is explained; the one after that waits for it."""

    def __init__(self) -> None:
        self.free = 0.0

    def store(self, now: float, seconds: float) -> float:
        """Take an explained shard, and return the time at which the device may continue."""
        going_on = max(now, self.free)
        self.free = going_on + seconds
        return going_on


def replay(shards: Iterable[ShardTimes]) -> Simulated:
    """Take one worker's measured shards through the model of a worker: what they should have taken altogether."""
    now = explaining = 0.0
    writer = _Writer()
    for shard in shards:
        now = writer.store(now + shard.waiting + shard.explaining, shard.storing)
        explaining += shard.explaining
    seconds = max(now, writer.free)
    return Simulated(seconds, explaining / seconds if seconds else 0.0, 0)


@dataclass
class _Shared:
    """What all workers wait for together: it serves one after the other."""

    per_second: float
    free: float = 0.0

    def take(self, now: float, amount: float) -> float:
        if math.isinf(self.per_second):
            return now
        self.free = max(self.free, now) + amount / self.per_second
        return self.free


class _Running:
    """A worker in the simulation: its shards, decoders, buffer, device and writer."""

    def __init__(self, worker: Worker, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.now = worker.start_seconds  # the device is free
        self.cores = [self.now] * worker.decoders
        self.decoded: list[float] = []  # when the groups in the buffer were or will be there
        self.room = self.now  # when the buffer last had room
        self.unasked = sum(sizes)  # rows that no core was given
        self.place = 0
        self.writer = _Writer()


def simulate(
    worker: Worker,
    photographs: Photographs,
    store: Store,
    *,
    images: int,
    devices: int,
    passes: int,
    failures: float = 0.0,
    rows: int = ROWS,
    seed: int = 0,
) -> Simulated:
    """Simulate a run, batch by batch, in the order of time; arguments as of ``estimate``.

    Each worker has its share of the shards. Its cores decode ahead, as far as the buffer of two groups a core and two
    batches has room; what is read and written goes through the shared store. A failure loses the shard that was begun
    and what was decoded.

    Raises:
        ValueError: shards are not of whole batches.
    """
    if rows % BATCH:
        raise ValueError(f"rows must be a multiple of {BATCH}, got {rows}")
    draw = random.Random(seed)
    shards = [min(rows, images - first) for first in range(0, images, rows)]
    running = [_Running(worker, shards[k::devices]) for k in range(devices) if shards[k::devices]]
    requests, bandwidth = _Shared(store.requests_per_second), _Shared(store.bytes_per_second)
    window = 2 * worker.decoders + 2 * BATCH // GROUP
    lost = 0
    queue = [(one.now, k) for k, one in enumerate(running)]
    heapq.heapify(queue)
    while queue:
        _, k = heapq.heappop(queue)
        one = running[k]
        count = min(BATCH, one.sizes[0] - one.place)
        while len(one.decoded) < window and one.unasked > 0:
            began = max(heapq.heappop(one.cores), one.room)
            read = max(
                requests.take(began, GROUP * store.requests_per_image),
                bandwidth.take(began, GROUP * photographs.bytes),
            )
            ready = max(read, began + GROUP * photographs.decode_seconds)
            heapq.heappush(one.cores, ready)
            one.decoded.append(ready)
            one.unasked -= GROUP
        one.room = began = max(one.now, one.decoded.pop(0))
        took = count * passes * worker.pass_seconds
        after = began + took
        if failures and draw.random() < 1 - math.exp(-failures / 3600 * (after - one.now)):
            lost += 1
            one.place, one.decoded, one.unasked = 0, [], sum(one.sizes)
            one.now = one.room = after + worker.start_seconds
            one.cores = [one.now] * worker.decoders
        else:
            one.now = after
            one.place += count
            if one.place == one.sizes[0]:
                written = bandwidth.take(one.now, one.sizes[0] * MAP_BYTES)
                one.now = one.writer.store(one.now, max(one.place * worker.store_seconds, written - one.now))
                one.sizes.pop(0)
                one.place = 0
        if one.sizes:
            heapq.heappush(queue, (one.now, k))
    seconds = max(max(one.now, one.writer.free) for one in running)
    useful = images * passes * worker.pass_seconds
    return Simulated(seconds, useful / devices / seconds, lost)


# Tables ---------------------------------------------------------------------------------------------------------------

PASSES = (1, 10, 200)
DEVICES = (1, 10, 100, 1000)
IMAGES = {"1 M": 10**6, "1 B": 10**9}

CASES = (
    # worker, photographs, store, images, devices, passes, failures
    (GPU, SMALL, PARQUET, 40_960, 2, 200, 0.0),
    (GPU, SMALL, PARQUET, 40_960, 8, 200, 0.0),
    (GPU, SMALL, PARQUET, 40_960, 2, 10, 0.0),
    (GPU, PHONE, PARQUET, 20_480, 2, 10, 0.0),
    (GPU, PHONE, PARQUET, 20_480, 2, 200, 0.0),
    (GPU, SMALL, replace(LOOSE, requests_per_second=550), 40_960, 8, 10, 0.0),
    (GPU, SMALL, replace(PARQUET, bytes_per_second=1e8), 40_960, 8, 10, 0.0),
    (GPU, SMALL, PARQUET, 409_600, 4, 200, 10.0),
    (CPU, SMALL, PARQUET, 10_240, 2, 10, 0.0),
)
"""Runs that are small enough to be simulated, each with another bottleneck."""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: int) -> str:
    """Write a table in Markdown, its columns from number ``right`` on to the right."""
    rules = ["---" if k < right else "--:" for k in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows))


def _hours(seconds: float) -> str:
    for size, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}" if seconds < 100 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def figures_table() -> str:
    """List the figures of one worker."""
    return _table(("figure of one worker", "value", "from"), FIGURES, 3)


def one_worker_table() -> str:
    """Tabulate the rates of one worker and its bottleneck."""
    rows = []
    for worker in (GPU, CPU):
        for passes in PASSES:
            allowed = limits(worker, SMALL, PARQUET, 1, passes)
            phone = limits(worker, PHONE, PARQUET, 1, passes)
            cores = (photographs.decode_seconds * allowed["device"] for photographs in (SMALL, PHONE))
            rates = (allowed["device"], allowed["decoding"], phone["decoding"], allowed["storing"], *cores)
            rows.append(
                (worker.name, str(passes), *(f"{rate:,.3g}" if rate < 100 else f"{rate:,.0f}" for rate in rates))
            )
    heads = ("worker", "passes", "device", "decoding, 500 x 375", "decoding, 12 MP", "storing")
    return _table((*heads, "cores to keep up, 500 x 375", "12 MP"), rows, 1)


def runs_table(photographs: Photographs) -> str:
    """Tabulate how long runs on GPUs take."""
    rows = []
    for name, images in IMAGES.items():
        for passes in PASSES:
            for devices in DEVICES:
                found = estimate(GPU, photographs, PARQUET, images=images, devices=devices, passes=passes)
                cells = (name, str(passes), f"{devices:,}", _hours(found.seconds), f"{found.device_hours:,.0f}")
                rows.append((*cells, f"{found.busy:.0%}", found.bottleneck))
    heads = ("images", "passes", "devices", "time", "device hours", "devices busy", "bottleneck")
    return _table(heads, rows, 1)


def loose_table() -> str:
    """Tabulate how many devices one prefix of loose files can feed."""
    rows = []
    for passes in PASSES:
        per_device = min(limits(GPU, SMALL, PARQUET, 1, passes).values())
        fed = LOOSE.requests_per_second / (per_device * LOOSE.requests_per_image)
        asked = 1000 * per_device
        rows.append((str(passes), f"{per_device:,.0f}", f"{fed:,.0f}", f"{asked:,.0f}"))
    heads = ("passes", "images/s of a device", "devices that one prefix feeds", "requests/s of 1,000 devices")
    return _table(heads, rows, 0)


def sizes_table() -> str:
    """Tabulate the sizes of the stored data."""
    rows = [
        (
            name,
            f"{images * 2 * 224 * 224 / 1e12:,.1f} TB",
            f"{images * MAP_BYTES / 1e12:,.1f} TB",
            f"{math.ceil(images / ROWS):,}",
            " to ".join(f"{images * size / 1e9:,.2g} GB" for size in PLAN_BYTES.values()),
            f"{images * PHONE.bytes / 1e12:,.0f} TB",
        )
        for name, images in IMAGES.items()
    ]
    heads = ("images", "maps, float16", "stored", "shards of 512", "plan", "12-megapixel photographs")
    return _table(heads, rows, 1)


def simulation_table() -> str:
    """Compare formulas and simulation."""
    rows = []
    for worker, photographs, store, images, devices, passes, failures in CASES:
        paper = estimate(worker, photographs, store, images=images, devices=devices, passes=passes, failures=failures)
        found = simulate(worker, photographs, store, images=images, devices=devices, passes=passes, failures=failures)
        what = paper.bottleneck + (f", {failures:g} failures per device and hour" if failures else "")
        cells = (what, worker.name, photographs.name, f"{images:,}", str(devices), str(passes))
        times = (f"{paper.seconds:,.0f} s", f"{found.seconds:,.0f} s", f"{found.seconds / paper.seconds - 1:+.1%}")
        rows.append((*cells, *times, f"{found.busy:.0%}"))
    heads = ("bottleneck", "worker", "photographs", "images", "devices", "passes", "formula", "simulation", "", "busy")
    return _table(heads, rows, 3)


def tables() -> dict[str, str]:
    """Make all tables, by name."""
    return {
        "figures": figures_table(),
        "one worker": one_worker_table(),
        "runs, 500 x 375": runs_table(SMALL),
        "runs, 12 megapixels": runs_table(PHONE),
        "loose files": loose_table(),
        "sizes": sizes_table(),
        "simulation": simulation_table(),
    }


def main() -> None:
    """Print all tables, between the marks that docs/results/scaling.md has them in."""
    for name, table in tables().items():
        print(f"<!-- {name} -->\n{table}\n<!-- end -->\n")


if __name__ == "__main__":
    main()
