"""Runs that are killed, side by side or fed with a deadly image: python -m tests.batch.interrupted FOLDER.

This process imports everything once and starts no thread, so that its forks begin at once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fampe_fast.batch.attempts import unfinished
from fampe_fast.batch.local import run_local
from fampe_fast.batch.manifest import MANIFEST
from fampe_fast.batch.plan import read_back
from fampe_fast.batch.reading import read_maps
from fampe_fast.batch.shards import finished_shards
from fampe_fast.batch.storage import Storage, open_storage

from .small_runs import DEADLY, a_classifier, digest_of, draw, draw_with_errors, planned

KILLS = int(os.environ.get("FAMPE_FAST_KILLS", "8"))
"""How often a run is killed; more take longer."""
SHARDS = 11


def forked(work: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return process


def code_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ends_within(process: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    return False


def run(storage: Storage, workers: int = 0, **options: Any) -> None:
    run_local(storage, devices=["cpu"], workers=workers, classifier=a_classifier(), **options)


def new(folder: Path, images: Path) -> Storage:
    assert code_of(forked(lambda: planned(folder, images, a_classifier()))) == 0
    return open_storage(folder)


def killed(folder: Path, images: Path) -> dict[str, Any]:
    whole = new(folder / "whole", images)
    began = time.monotonic()
    assert code_of(forked(lambda: run(whole))) == 0
    usual = time.monotonic() - began
    storage = new(folder / "killed", images)
    chance = random.Random(0)
    kills, digests = 0, []
    while kills < KILLS or not storage.exists(MANIFEST):
        # In another order each time: a shard that is killed three times takes longer, as its images come one by one.
        order = chance.sample(range(SHARDS), SHARDS)
        process = forked(lambda order=order: run(storage, shards=order))  # type: ignore[misc]
        if kills == KILLS:
            assert code_of(process) == 0
        elif not ends_within(process, chance.uniform(0, usual)):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            kills += 1
        elif storage.exists(MANIFEST):  # done before there were enough of them: once more from the beginning
            digests.append(digest_of(storage))
            storage.remove(MANIFEST)
            shutil.rmtree(folder / "killed" / "maps")
    hidden = [path.name for path in (folder / "killed").rglob(".*")]
    return {
        "whole": digest_of(whole),
        "digests": [*digests, digest_of(storage)],
        "kills": kills,
        "left": [*hidden, *unfinished(storage)],
        "rows": sum(len(part["image_id"]) for part in read_maps(folder / "killed", columns=["image_id"])),
    }


def parts(folder: Path, images: Path) -> dict[str, Any]:
    storage = new(folder / "parts", images)
    workers = [forked(lambda k=k: run(storage, part=(k, 3))) for k in range(3)]  # type: ignore[misc]
    return {
        "codes": [code_of(process) for process in workers],
        "digest": digest_of(storage),
        "manifest": storage.exists(MANIFEST),
        "logs": len(list(storage.names("log"))),
    }


def deadly(folder: Path) -> dict[str, Any]:
    """An image of which the decoder dies, in a process that decodes itself and in one whose decoder is another."""
    images = draw(folder / "deadly images", 8)
    Image.new("RGB", DEADLY).save(images / "007.png")
    found: dict[str, Any] = {}
    for name, workers in (("here", 0), ("beside", 1)):
        storage = new(folder / name, images)
        codes = []
        while not storage.exists(MANIFEST) and len(codes) < 5:
            codes.append(code_of(forked(lambda: run(storage, workers))))  # noqa: B023
        errors = [error for part in read_maps(folder / name, columns=["error"]) for error in part["error"]]
        found[name] = {"codes": codes, "errors": errors, "digest": digest_of(storage), "left": unfinished(storage)}
    return found


def orphans(folder: Path, images: Path) -> dict[str, Any]:
    """The processes that a run had started, and those of them that are there some time after it was killed."""
    storage = new(folder / "orphans", images)
    slow = forked(lambda: run(storage, 1, on_progress=lambda progress: time.sleep(60)))
    while not finished_shards(storage):
        time.sleep(0.02)
    children = [int(child) for child in Path(f"/proc/{slow}/task/{slow}/children").read_text().split()]
    os.kill(slow, signal.SIGKILL)
    os.waitpid(slow, 0)
    deadline = time.monotonic() + 20
    while (left := [child for child in children if _runs(child)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {"children": len(children), "left": len(left)}


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    images = draw_with_errors(folder / "images", 4 * SHARDS - 2)
    found = {
        "killed": killed(folder, images),
        "parts": parts(folder, images),
        "deadly": deadly(folder),
        "orphans": orphans(folder, images),
        "images": read_back(open_storage(folder / "whole")).images,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
