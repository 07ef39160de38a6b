"""Make the shards of a plan on a Ray cluster, with a worker in each of its actors.

Ray transports only the numbers of shards to the actors and their reports back. Images and maps go between the actors
and the storage, so that the cluster's shared memory holds nothing large; a shard is done when its file exists.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from ..errors import first_line, kind_and_line
from ..ops.backends import VARIABLE
from ..runtime.compile_cache import VARIABLE as COMPILE_CACHE
from ..runtime.lost_device import is_of_device
from . import attempts
from .decoding import usual_processes
from .extras import needs
from .local import Progress, Retried, RunReport, Tally, concluded, shards_to_do, stopping
from .plan import Plan, read_back
from .shards import finished_shards, shard_metadata, shard_name
from .stop_sign import StopSign
from .storage import Storage
from .worker import ShardReport, Worker

RETRIES = 2
"""Number of times a block of shards whose actor died is restarted; Ray's default is unlimited. Its last attempt is then
the one that decodes one by one."""
GIVEN_UP = 100
"""Number of blocks that may use up all their attempts before the run ends."""
FAILURES = 3
"""Number of blocks that may fail with an error of the worker, such as a full disk, before the run ends."""
TOGETHER = 8
"""Most shards in a block; within a block the next shard is decoded while one is explained."""
BLOCKS = 10_000
"""Most blocks, which takes precedence over ``TOGETHER``: each takes Ray some milliseconds."""
STORE = 100 * 2**20
"""Bytes of the object store of a cluster that is started for a run; Ray needs 75 MiB."""


def run_ray(
    dest: Storage,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    decoders: int | None = None,
    retry_errors: Retried = False,
    trust_model: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> RunReport:
    """Make the remaining shards on a Ray cluster, whose machines all need this package and access to ``dest``.

    An actor that dies is restarted, and its work is tried three times in all. A shard that ends its actor each time is
    given up and named in the report; the others are made. A request to stop works as for ``run_local``, except that the
    second one loses the actors' current work.

    Args:
        dest: the plan's storage, reachable from every machine of the cluster: a shared folder or a URL.
        address: address of the cluster; None for ``RAY_ADDRESS``, else a cluster is started on this machine for the
            duration of the run. If Ray is already initialised, that cluster is used.
        workers: number of actors, which may exceed the current room; None for as many as fit.
        gpus_per_worker: share of a GPU, at most 1, for a plan for GPUs; None for 1.
        decoders: number of decoding processes per actor; 0 decodes in the actor, None chooses.
        retry_errors: make shards again whose errors may be temporary; "all": those with any errors.
        trust_model: load the model even if it is a program.
        on_progress: called after each shard, or after several at a time.
        on_stop: called at the first request to stop.

    Raises:
        ValueError: a number out of range, no room for a worker, or no plan.
        ImportError: Ray is not installed.
        ConnectionError: there is no cluster at the address.
        RuntimeError: workers failed or died too often; the message names the error. Stored shards are complete.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    gpus = gpus_per_worker
    if gpus is not None and not 0 < gpus <= 1:
        raise ValueError(f"GPUs per worker must be a share in (0, 1], as a worker uses one GPU, got {gpus:g}")
    plan = read_back(dest)
    if gpus is not None and plan.device == "cpu":
        raise ValueError("GPUs per worker are given, but the plan is for CPUs")
    ray = ray_module()
    dest.remove_leftovers()
    todo = shards_to_do(dest, plan, range(plan.shards), retry_errors)
    if not todo:
        return concluded(dest, plan, Tally(plan, todo, 1), stopped=False)
    with _cluster(ray, address), stopping(on_stop) as asked:
        resources, room, on_one = _room(ray, plan, 1.0 if gpus is None else gpus)
        if workers is None and not room:
            raise ValueError(
                f"no machine of the cluster has room for a worker ({_words(resources)}); if it grows on demand, give "
                "the number of workers (--workers)"
            )
        blocks = _blocks(todo, workers or room)
        count = min(workers or room, len(blocks))
        if decoders is None:
            decoders = usual_processes(plan.device, on_one)
        arguments = {"dest": dest, "decoders": decoders, "trust_model": trust_model, "again": bool(retry_errors)}
        tally = Tally(plan, todo, count)
        reports = _reports(ray, blocks, count, {**resources, **_environment(plan)}, arguments, asked)
        tally.follow(reports, on_progress)
        stopped = asked.is_set() and tally.left > 0
    given_up = () if stopped else tuple(sorted(set(todo) - finished_shards(dest)))
    return concluded(dest, plan, tally, stopped)._replace(given_up=given_up)


def ray_module() -> Any:
    """Import ``ray`` and ``ray.data``.

    Raises:
        ImportError: they are not installed; the message says what to do.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise needs("ray", "ray[data]", "to work on a cluster") from error
    return ray


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one, and disconnect at the end; Ray's handler of SIGTERM is replaced."""
    if ray.is_initialized():
        yield
        return
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":
        # It exists only for this run, without a dashboard and without usage reports.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options = {"include_dashboard": False, "object_store_memory": STORE}
    try:
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
        finally:
            if here:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        yield
    finally:
        ray.shutdown()


def _room(ray: Any, plan: Plan, gpus: float) -> tuple[dict[str, float], int, int]:
    """Find a worker's resources, and how many workers now fit into the cluster and into one machine."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if plan.device == "cpu":
        most = max((machine.get("CPU", 0) for machine in machines), default=0)
        name, option, each = "CPU", "num_cpus", min(plan.threads, most) or plan.threads
    else:
        name, option, each = "GPU", "num_gpus", gpus
    rooms = [int(machine.get(name, 0) / each + 1e-6) for machine in machines]
    return {option: each}, sum(rooms), max([1, *rooms])


def _words(resources: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in resources.items())


def _blocks(shards: Sequence[int], workers: int) -> list[list[int]]:
    """Split the shards into small blocks, so that all workers end at about the same time."""
    together = max(1, min(TOGETHER, len(shards) // (16 * workers)), -(-len(shards) // BLOCKS))
    return [list(shards[first : first + together]) for first in range(0, len(shards), together)]


def _environment(plan: Plan) -> dict[str, Any]:
    """Return the environment variables of a worker's process, as Ray would set the threads itself."""
    variables = {VARIABLE: plan.backend}
    if plan.device == "cpu":
        variables["OMP_NUM_THREADS"] = str(plan.threads)
    if COMPILE_CACHE in os.environ:
        variables[COMPILE_CACHE] = os.environ[COMPILE_CACHE]
    return {"runtime_env": {"env_vars": variables}}


def _reports(
    ray: Any,
    blocks: Sequence[list[int]],
    workers: int,
    options: dict[str, Any],
    arguments: dict[str, Any],
    asked: threading.Event,
) -> Generator[ShardReport, None, None]:
    stop = ray.remote(num_cpus=0)(StopSign).remote()
    over = threading.Event()

    def pass_on() -> None:
        while not over.wait(0.2):
            if asked.is_set():
                ray.get(stop.set.remote())
                return

    thread = threading.Thread(target=pass_on, name="pass on the request to end", daemon=True)
    thread.start()
    failures: list[str] = []
    try:
        with _settings(ray):
            items = ray.data.from_items([{"shards": block} for block in blocks], override_num_blocks=len(blocks))
            with warnings.catch_warnings():
                # Both limits can only be set this way; the requirement excludes Ray 2.64, which will remove it.
                warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
                reports = items.flat_map(
                    ShardMaker,
                    fn_constructor_kwargs={**arguments, "stop": stop},
                    # If a second task waited at an actor, a death would use up one of its attempts, too. As none
                    # waits, Ray would never enlarge the pool: it has its final size from the start.
                    compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
                    max_restarts=-1,
                    max_task_retries=RETRIES,
                    **options,
                )
            with closing(iter(reports.iter_rows())) as rows:  # ends the actors, even if still referenced
                for row in rows:
                    if row["report"]:
                        yield ShardReport(**json.loads(row["report"]))
                        continue
                    failures.append(row["failure"])
                    if len(failures) == FAILURES:
                        ray.get(stop.set.remote())
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"workers died too often: {first_line(error)}") from error
    finally:
        over.set()
        thread.join()
        ray.kill(stop)
    if failures:
        raise RuntimeError("; ".join(dict.fromkeys(failures)))


@contextmanager
def _settings(ray: Any) -> Iterator[None]:
    """Continue a run without the blocks that were given up, whose shards' files are missing."""
    context = ray.data.DataContext.get_current()
    wanted = {"max_errored_blocks": GIVEN_UP, "enable_progress_bars": False}
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")  # it logs each step, and warns that there are no progress bars
    level = logger.level
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        logger.setLevel(logging.ERROR)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)


# In an actor ----------------------------------------------------------------------------------------------------------


class ShardMaker:
    """Makes blocks of shards, one instance in each Ray actor."""

    def __init__(self, dest: Storage, decoders: int, trust_model: bool, again: bool, stop: Any) -> None:
        """Store the settings without loading the model, so that its failures count as attempts at a block.

        Args:
            dest: the plan's storage.
            decoders: number of decoding processes.
            trust_model: load the model even if it is a program.
            again: also make shards that are finished.
            stop: the ``StopSign``.
        """
        self.dest, self.decoders, self.trust_model = dest, decoders, trust_model
        self._again, self._stop = again, stop
        self._worker: Worker | None = None

    def load(self) -> Worker:
        """Make the worker."""
        return Worker(self.dest, processes=self.decoders, trust_model=self.trust_model)

    def __call__(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """Make a block.

        Args:
            row: a row with the block's "shards".

        Returns:
            The report of each shard as JSON, and the error if the worker failed.
        """
        rows: list[dict[str, str]] = []
        try:
            for report in self._made([int(shard) for shard in row["shards"]]):
                rows.append({"report": json.dumps(report._asdict()), "failure": ""})
        except Exception as error:
            if self._worker is not None:
                self._worker.log.write("failed", reason=first_line(error))
                self._worker.close()
                self._worker = None
            if is_of_device(error):
                os._exit(1)  # a new process may succeed
            where = f"{platform.node()}: {kind_and_line(error)}"
            rows.append({"report": "", "failure": where})
        return rows

    def _made(self, shards: list[int]) -> Iterator[ShardReport]:
        if self._stopped():
            return
        if self._worker is None:
            self._worker = self.load()
        begun = attempts.unfinished(self.dest)
        there = [] if self._again else [shard for shard in shards if self.dest.exists(shard_name(shard))]
        for shard in there:  # finished by an earlier attempt at this block, whose reports were lost with its process
            yield self._report_of(shard)
        missing = [shard for shard in shards if shard not in there]
        yield from self._worker.work([shard for shard in missing if shard not in begun], self._stopped)
        # A shard that may have ended the process comes last and alone, so that it affects no others.
        for shard in sorted((shard for shard in missing if shard in begun), key=lambda shard: begun[shard]):
            if self._stopped():
                break
            yield self._worker(shard)
        self._worker.log.flush()

    def _stopped(self) -> bool:
        import ray

        return bool(ray.get(self._stop.is_set.remote()))

    def _report_of(self, shard: int) -> ShardReport:
        found = shard_metadata(self.dest, shard)
        size = self.dest.size(shard_name(shard))
        return ShardReport(
            shard, found["rows"], found["errors"], found["transient"], size, "", found["chunk"], 0, 0.0, 0.0, 0.0, 0.0
        )
