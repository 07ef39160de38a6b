"""Train the classifier that ships with the package, on images with known ground truth that the package generates.

    python -m benchmarks.train_embedded_classifier                 # rewrites fampe_fast/weights, minutes on two cores
    python -m benchmarks.train_embedded_classifier --out trial --steps 100

Writes ``embedded_classifier.safetensors`` and ``embedded_classifier.json``, the record of the run. The same seed,
steps, threads and versions on the same kind of processor give the same weights. On a machine with other work to do,
OMP_WAIT_POLICY=PASSIVE in the environment saves half of the processor time and changes nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from fampe_fast.images.generated import BANDS, CLASS_NAMES, DEFAULT_SIZE, generate
from fampe_fast.models.embedded import MEAN, NAME, STD, EmbeddedNet

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "fampe_fast" / "weights"
CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that the weights depend on, besides the versions."""

    seed: int = 7000
    steps: int = 800
    batch_size: int = 64
    train_images: int = 8192
    test_images: int = 4096
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    noise: float = 0.12  # largest standard deviation
    contrast: float = 0.5  # lowest factor
    ramp: float = 0.4  # share of the steps over which noise and contrast reach full strength
    threads: int = 2

    @property
    def test_seed(self) -> int:
        """The seed of the held-out images."""
        return self.seed + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for the two files (default: the package)")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="seed of data, initial weights and order")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=Settings.steps, help="optimiser steps (default: %(default)s)")
    length.add_argument(
        "--minutes",
        type=float,
        help="choose as many steps as fit, from the time of the first ones, and record the number",
    )
    parser.add_argument("--train-images", type=int, default=Settings.train_images)
    parser.add_argument("--test-images", type=int, default=Settings.test_images)
    args = parser.parse_args()
    settings = Settings(seed=args.seed, steps=args.steps, train_images=args.train_images, test_images=args.test_images)

    started, cpu_started = time.perf_counter(), cpu_seconds()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)

    images, labels = training_images(settings)
    print(f"{len(labels)} images generated in {time.perf_counter() - started:.0f} s", flush=True)

    net = EmbeddedNet(len(CLASS_NAMES), batch_norm=True).to(memory_format=torch.channels_last)
    if args.minutes is not None:
        left = 60.0 * args.minutes - (time.perf_counter() - started)
        settings = dataclasses.replace(
            settings, steps=max(1, int(0.9 * left / seconds_per_step(net, images, labels, settings)))
        )
        torch.manual_seed(settings.seed)
        net = EmbeddedNet(len(CLASS_NAMES), batch_norm=True).to(memory_format=torch.channels_last)
        print(f"{settings.steps} steps fit", flush=True)
    optimise(net, images, labels, settings)
    net = net.folded()

    results = evaluate(net, settings)
    for name, value in results.items():
        print(f"{name:>24}: {value:.4f}")
    record = {
        "name": NAME,
        "class_names": list(CLASS_NAMES),
        "input_size": [DEFAULT_SIZE, DEFAULT_SIZE],
        "bands_cycles_per_image": {name: list(band) for name, band in BANDS.items()},
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "settings": {**dataclasses.asdict(settings), "test_seed": settings.test_seed},
        "held_out": results,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "processor": platform.machine(),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(cpu_seconds() - cpu_started, 1),
    }
    write(net, record, args.out)


def training_images(settings: Settings) -> tuple[Tensor, Tensor]:
    """Generate the training set on all threads: uint8 ``(N, 3, S, S)`` and labels ``(N,)``."""
    count = settings.train_images
    jobs = [(range(first, min(first + CHUNK, count)), settings.seed) for first in range(0, count, CHUNK)]
    with ProcessPoolExecutor(settings.threads, mp_context=get_context("spawn")) as pool:
        images, labels = zip(*pool.map(training_chunk, jobs), strict=True)
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))


def training_chunk(job: tuple[range, int]) -> tuple[np.ndarray, np.ndarray]:
    chunk = generate(*job)
    return (255.0 * chunk.images).round().to(torch.uint8).numpy(), chunk.labels.numpy()


def optimise(net: EmbeddedNet, images: Tensor, labels: Tensor, settings: Settings) -> None:
    """Train in place: AdamW, one cycle, epochs in random order, images transformed in ways that keep the class."""
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.steps, pct_start=0.2
    )
    generator = torch.Generator().manual_seed(settings.seed)
    order, place, running, began = torch.empty(0, dtype=torch.int64), 0, 0.0, time.perf_counter()
    net.train()
    for step in range(1, settings.steps + 1):
        if place + settings.batch_size > len(order):
            order, place = torch.randperm(len(labels), generator=generator), 0
        rows = order[place : place + settings.batch_size]
        place += len(rows)
        level = min(1.0, step / (settings.ramp * settings.steps))
        loss = loss_of(net, images[rows], labels[rows], settings, level, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        running += loss.item()
        if step % 50 == 0 or step == settings.steps:
            rate = (time.perf_counter() - began) / step
            since = (step - 1) % 50 + 1
            print(f"step {step:5d}/{settings.steps}  loss {running / since:.4f}  {1e3 * rate:.0f} ms/step", flush=True)
            running = 0.0


def loss_of(
    net: EmbeddedNet, images: Tensor, labels: Tensor, settings: Settings, level: float, generator: torch.Generator
) -> Tensor:
    logits = net(normalised(augmented(images, settings, level, generator)))
    return nn.functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)


def augmented(images: Tensor, settings: Settings, level: float, generator: torch.Generator) -> Tensor:
    """Return each image of bytes, mirrored, its channels permuted, noisy and of lower contrast, at random, in [0, 1].

    Noise makes the gradient smoother (Etmann et al., "On the Connection Between Adversarial Robustness and Saliency Map
    Interpretability", 2019); with the contrast it keeps the answer on the noisy and filtered samples of FAMPE.
    """
    count = len(images)
    flip_x, flip_y, transpose = torch.randint(0, 2, (3, count, 1, 1, 1), generator=generator, dtype=torch.bool)
    images = torch.where(flip_x, images.flip(3), images)
    images = torch.where(flip_y, images.flip(2), images)
    images = torch.where(transpose, images.transpose(2, 3), images)
    channels = torch.rand(count, images.shape[1], generator=generator).argsort(1)
    images = images[torch.arange(count)[:, None], channels].float() / 255.0
    strength, contrast, pivot = torch.rand(3, count, 1, 1, 1, generator=generator)
    noisy = images + level * settings.noise * strength * torch.randn(images.shape, generator=generator)
    return pivot + (1.0 - level * (1.0 - settings.contrast) * contrast) * (noisy - pivot)


def normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def seconds_per_step(net: EmbeddedNet, images: Tensor, labels: Tensor, settings: Settings) -> float:
    """Time the median of some steps on a network that is thrown away."""
    generator, times = torch.Generator().manual_seed(0), []
    for _ in range(12):
        began = time.perf_counter()
        rows = torch.randint(0, len(labels), (settings.batch_size,), generator=generator)
        loss_of(net, images[rows], labels[rows], settings, 1.0, generator).backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - began)
    return float(np.median(times[2:]))


@torch.no_grad()
def evaluate(net: EmbeddedNet, settings: Settings) -> dict[str, float]:
    """Measure accuracies on held-out images, and what becomes of them without the object or on other backgrounds."""
    parts = []
    for first in range(0, settings.test_images, CHUNK):
        test = generate(range(first, min(first + CHUNK, settings.test_images)), settings.test_seed)
        outside = (1.0 - test.coverage)[:, None]
        elsewhere = test.images + outside * (test.backgrounds.roll(1, 0) - test.backgrounds)
        probabilities = net(normalised(test.images)).softmax(1)
        blank, moved = (net(normalised(images)).argmax(1) for images in (test.backgrounds, elsewhere))
        confidence, predicted = probabilities.max(1)
        parts.append(torch.stack([test.labels, predicted, moved, blank, confidence], 1).double())
    labels, predicted, moved, blank, confidence = torch.cat(parts).unbind(1)

    def share(hits: Tensor) -> float:
        return round(hits.double().mean().item(), 5)

    return {
        "accuracy": share(predicted == labels),
        "shape_accuracy": share(predicted // len(BANDS) == labels // len(BANDS)),
        "texture_accuracy": share(predicted % len(BANDS) == labels % len(BANDS)),
        "lowest_class_accuracy": min(share(predicted[labels == c] == c) for c in range(len(CLASS_NAMES))),
        "other_background_accuracy": share(moved == labels),
        "no_object_accuracy": share(blank == labels),
        "mean_confidence": share(confidence),
    }


def write(net: EmbeddedNet, record: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = save({name: tensor.contiguous() for name, tensor in net.state_dict().items()})
    record = {**record, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    # Both are whole before either replaces an older one.
    for suffix, data in (("safetensors", content), ("json", (json.dumps(record, indent=2) + "\n").encode())):
        (out / f"{NAME}.{suffix}.part").write_bytes(data)
    for suffix in ("safetensors", "json"):
        os.replace(out / f"{NAME}.{suffix}.part", out / f"{NAME}.{suffix}")
    print(
        f"{len(content)} bytes of weights, {record['wall_seconds']:.0f} s, {record['cpu_seconds']:.0f} CPU s -> {out}"
    )


def cpu_seconds() -> float:
    """Return the processor time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
