"""Compare the service's rate at a full queue with that of ``batch``, for the same images and model, in turns.

    python -m benchmarks.serving photos --model resnet50 [other options of the model and the method]

Both explain the images over and over on this machine; the time in which processes begin is counted for neither. The
clients run beside the service, and what they cost is the service's loss.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.machine import build_of
from fampe_fast.images import find_images

WARM = 16
"""Images that are explained before the clock starts."""


def batch_rate(photos: Sequence[Path], count: int, words: Sequence[str]) -> float:
    """Measure the images a second of a batch run, from the first shard's end to the last one's.

    Args:
        photos: the images, repeated.
        count: how many to explain after the first shard.
        words: options of the command.
    """
    with tempfile.TemporaryDirectory() as folder:
        table, dest = Path(folder) / "rows.csv", Path(folder) / "maps"
        rows = 64
        places = [photos[k % len(photos)].resolve() for k in range(count + rows)]
        table.write_text("uri\n" + "".join(f"{place}\n" for place in places))
        given = [str(table), "--out", str(dest), "--rows-per-shard", str(rows), *words]
        subprocess.run([sys.executable, "-m", "fampe_fast", "batch", *given], check=True, capture_output=True)
        lines = [json.loads(line) for log in (dest / "log").glob("*.jsonl") for line in log.read_text().splitlines()]
        shards = [line for line in lines if line.get("event") == "shard"][1:]
        return sum(one["rows"] for one in shards) / sum(one["seconds"] for one in shards)


def service_rate(photos: Sequence[Path], count: int, clients: int, words: Sequence[str]) -> tuple[float, float]:
    """Measure the images a second of a service whose queue stays full, and its mean batch.

    Args:
        photos: the images, repeated.
        count: how many to explain after the first ``WARM``.
        clients: connections that ask one image after the other.
        words: options of the command.
    """
    with tempfile.TemporaryFile("w+") as log:
        given = ["--port", "0", "--name", "measured", "--queue", str(clients), "--deadline", "600", *words]
        service = subprocess.Popen([sys.executable, "-m", "fampe_fast", "serve", *given], stderr=log)
        try:
            port = _port_when_ready(log, service)
            bodies = [path.read_bytes() for path in photos]
            done: list[float] = []
            sizes: list[int] = []
            lock = threading.Lock()

            def ask(first: int) -> None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
                k = first
                while len(done) < count + WARM:
                    connection.request(
                        "POST", "/v1/models/measured:explain", bodies[k % len(bodies)], {"Content-Type": "image/jpeg"}
                    )
                    answer = connection.getresponse()
                    content = answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"the service answered {answer.status}: {content[:200]!r}")
                    with lock:
                        done.append(time.perf_counter())
                        sizes.append(json.loads(content)["explanations"][0]["batch_size"])
                    k += clients

            threads = [threading.Thread(target=ask, args=(k,)) for k in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            service.terminate()
            service.wait(60)
    counted = done[WARM - 1 : WARM + count]
    return (len(counted) - 1) / (counted[-1] - counted[0]), statistics.mean(sizes[WARM : WARM + count])


def _port_when_ready(log: object, service: subprocess.Popen[bytes]) -> int:
    port = 0
    while True:
        log.seek(0)  # type: ignore[attr-defined]
        text: str = log.read()  # type: ignore[attr-defined]
        if service.poll() is not None:
            raise RuntimeError(f"the service ended: {text[-500:]}")
        for line in text.splitlines():
            if line.startswith("listening on"):
                port = int(line.rpartition(":")[2])
            elif '"event": "ready"' in line:
                return port
        time.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both in turns and print each rate, and the ratios' median and range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of JPEG files")
    parser.add_argument("--images", type=int, default=384, help="images explained in each turn (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=32, help="connections that send requests (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each (default: %(default)s)")
    arguments, words = parser.parse_known_args(argv)
    photos = find_images(arguments.photos)
    import torch

    build = build_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{build.device}, torch {build.torch}, commit {build.commit}, {build.date}: {' '.join(words)}")
    print("turn  batch/s  service/s  ratio  mean batch")
    ratios = []
    for turn in range(arguments.turns):
        # Each goes first in turn.
        first = batch_rate(photos, arguments.images, words) if turn % 2 == 0 else None
        served, size = service_rate(photos, arguments.images, arguments.clients, words)
        batch = batch_rate(photos, arguments.images, words) if first is None else first
        ratios.append(served / batch)
        print(f"{turn:4d} {batch:8.2f} {served:10.2f} {ratios[-1]:6.2f} {size:11.1f}", flush=True)
    print(f"service / batch: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
