"""What cannot run says so, or takes the documented way round; work that has begun is not lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fampe_fast import FAMPE, AttEXplore, OccludedFrequency, insertion_deletion, mu_fidelity
from fampe_fast.errors import BackendUnavailableError, FampeWarning
from fampe_fast.ops import backends
from fampe_fast.robustness import BandLimitedAttack
from fampe_fast.runtime.device_memory import free_memory
from fampe_fast.runtime.model_probe import probe

from .models_for_tests import Smooth, some_images

pytestmark = pytest.mark.usefixtures("few_objects")


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch: pytest.MonkeyPatch):
    """The choice of a backend is remembered; what a test pretends must not be."""
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends._choice.cache_clear()
    backends._resolve.cache_clear()
    yield
    backends._choice.cache_clear()
    backends._resolve.cache_clear()


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch):
    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
        monkeypatch.setattr(torch.version, "hip", None)

    return pretend


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    find = backends.importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else find(name, *rest)
    )


def test_a_gpu_gets_the_kernels(pretended_gpu) -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    pretended_gpu(9, 0)
    assert backends.choice("cuda") == ("triton", "the default for cuda tensors")
    for op in backends.OPS:
        assert backends.implementation(op, torch.device("cuda")).__module__.startswith("fampe_fast.kernels")


def test_an_old_gpu_runs_the_reference_and_says_why(pretended_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    pretended_gpu(7, 5)
    name, reason = backends.choice("cuda")
    assert name == "reference"
    assert "compute capability 8.0 or newer, this GPU has 7.5" in reason
    monkeypatch.setenv(backends.VARIABLE, "triton")
    with pytest.raises(BackendUnavailableError, match="this GPU has 7.5"):
        backends.choice("cuda")


@pytest.fixture
def two_kinds_of_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """GPU 0 is new and GPU 1 too old; the list holds the current one."""
    pytest.importorskip("triton", reason="the package triton is not installed")
    capabilities, current = [(9, 0), (7, 0)], [0]

    def capability(device: object = None) -> tuple[int, int]:
        index = None if device is None else torch.device(device).index
        return capabilities[current[0] if index is None else index]

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.version, "hip", None)
    return current


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_gpu_is_asked_itself(current: int, order: tuple[int, int], two_kinds_of_gpu: list[int]) -> None:
    two_kinds_of_gpu[0] = current
    packages = {0: "fampe_fast.kernels", 1: "fampe_fast.reference"}
    for index in order:
        name, reason = backends.choice(f"cuda:{index}")
        assert (name, "this GPU has 7.0" in reason) == [("triton", False), ("reference", True)][index]
        for op in backends.OPS:
            assert backends.implementation(op, torch.device("cuda", index)).__module__.startswith(packages[index])
    assert backends.triton_obstacle("cuda:0") is None
    assert "7.0" in str(backends.triton_obstacle(torch.device("cuda", 1)))


def test_a_gpu_without_a_number_is_the_current_one_at_the_time(
    two_kinds_of_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for current, name in ((0, "triton"), (1, "reference"), (0, "triton")):
        two_kinds_of_gpu[0] = current
        assert backends.choice("cuda")[0] == name
    monkeypatch.setenv(backends.VARIABLE, "triton")
    assert backends.choice("cuda:0")[0] == "triton"
    with pytest.raises(BackendUnavailableError, match="this GPU has 7.0"):
        backends.choice("cuda:1")


def test_a_registered_backend_takes_every_device_of_its_kinds(two_kinds_of_gpu: list[int], monkeypatch) -> None:
    monkeypatch.setattr(backends, "_BACKENDS", dict(backends._BACKENDS))
    backends.register_backend("mine", {}, ("cuda",))
    monkeypatch.setenv(backends.VARIABLE, "mine")
    assert [backends.choice(f"cuda:{index}")[0] for index in (0, 1)] == ["mine", "mine"]
    with pytest.raises(BackendUnavailableError, match="takes .*cuda.* tensors, got cpu tensors"):
        backends.choice("cpu")


def test_without_triton_a_gpu_runs_the_reference_and_says_why(pretended_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended_gpu(9, 0)
    without_triton(monkeypatch)
    name, reason = backends.choice("cuda")
    assert name == "reference"
    assert "triton is not installed" in reason
    monkeypatch.setenv(backends.VARIABLE, "triton")
    with pytest.raises(BackendUnavailableError, match="FAMPE_FAST_BACKEND='triton' cannot run: .*not installed"):
        backends.choice("cuda")


def test_kernels_asked_for_without_a_gpu_are_refused_before_any_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    monkeypatch.setenv(backends.VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailableError, match="need a GPU, but the tensors are on the CPU"):
        FAMPE(Smooth(), steps=1, samples=1).attribute(some_images(), target=0)
    monkeypatch.setenv(backends.VARIABLE, "cuda")
    with pytest.raises(BackendUnavailableError, match="unknown; known are auto, triton, compiled, reference"):
        FAMPE(Smooth(), steps=1, samples=1).attribute(some_images(), target=0)


class Large(Smooth):
    """Has memory for so many images; remembers how many it was shown."""

    def __init__(self, most: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.most = most
        self.error = error
        self.shown: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.shown.append(len(pixels))
        if len(pixels) > self.most:
            where = (
                "DefaultCPUAllocator: can't allocate memory:" if self.error is RuntimeError else "CUDA out of memory."
            )
            raise self.error(f"{where} Tried to allocate 20.00 MiB.")
        return super().forward(pixels)


@pytest.mark.parametrize("method", [FAMPE, AttEXplore])
def test_too_little_memory_names_what_to_change(method: type) -> None:
    explain = method(Large(2), steps=1, samples=10, views=0)
    message = r"with 3 images of \(3, 24, 24\) per model pass: give a smaller internal_batch_size.*Tried to allocate"
    with pytest.warns(FampeWarning, match="continuing with 3"), pytest.raises(torch.OutOfMemoryError, match=message):
        explain.attribute(some_images(2), target=0, internal_batch_size=8)
    assert explain.attribute(some_images(2), target=0, internal_batch_size=2).shape == (2, 3, 24, 24)


@pytest.mark.parametrize("method", [FAMPE, AttEXplore])
def test_a_chunk_that_does_not_fit_is_halved_once_and_remembered(method: type) -> None:
    images, options = some_images(2), {"steps": 2, "samples": 6, "views": 0, "input_diversity": False}
    expected = method(Smooth(), **options).attribute(images, target=0, internal_batch_size=4)
    model = Large(5)
    with pytest.warns(
        FampeWarning, match=r"out of memory with 6 images .* continuing with 3, in later calls"
    ) as caught:
        maps = method(model, **options).attribute(images, target=0)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the caller's
    assert model.shown == [2, 1, 6, *2 * [3, 3, 3, 3]]  # two questions, the attempt (12 = 6 + 6), two steps
    torch.testing.assert_close(maps, expected)
    model.shown.clear()
    method(model, **options).attribute(images, target=0)  # another method of the same model
    assert model.shown == 2 * [3, 3, 3, 3]
    model.shown.clear()
    method(model, **options).attribute(images, target=0, internal_batch_size=2)
    assert model.shown == 2 * [2, 2, 2, 2, 2, 2]
    with pytest.warns(FampeWarning, match="continuing with 3"):  # other images may need less
        method(model, **options).attribute(some_images(2, height=16, width=16), target=0)


def test_views_that_do_not_fit_go_on_with_half_as_well() -> None:
    images = some_images(3)
    expected = FAMPE(Smooth(), passes=2).attribute(images, target=1)
    model = Large(5)
    with pytest.warns(
        FampeWarning, match=r"out of memory with 6 images .* continuing with 3, in later calls"
    ) as caught:
        maps = FAMPE(model, passes=2).attribute(images, target=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert model.shown == [2, 1, 1, 6, 3, 3]  # two questions, its layers, the attempt
    torch.testing.assert_close(maps, expected)
    model.shown.clear()
    FAMPE(model, steps=1, samples=2, views=2).attribute(images, target=1)
    assert model.shown == [3, 3, 3, 3]
    with pytest.warns(FampeWarning, match="with 3"), pytest.raises(torch.OutOfMemoryError, match="with 3 images of"):
        FAMPE(Large(2), passes=2).attribute(images, target=1)


def test_a_cpus_want_of_memory_is_known_by_its_message() -> None:
    images = some_images(2)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator: can't allocate memory"):
        torch.empty(2**50)  # what torch itself says
    with pytest.warns(FampeWarning, match=r"out of memory with 6 images .* continuing with 3"):
        FAMPE(Large(4, RuntimeError), steps=1, samples=3, views=0).attribute(images, target=0)
    with (
        pytest.warns(FampeWarning, match="continuing with 3"),
        pytest.raises(torch.OutOfMemoryError, match="give a smaller internal_batch_size.*DefaultCPUAllocator"),
    ):
        FAMPE(Large(2, RuntimeError), steps=1, samples=3, views=0).attribute(images, target=0)


def test_other_errors_of_a_model_are_passed_on() -> None:
    class Broken(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            if len(pixels) > 1:
                raise RuntimeError("the model's own mistake")
            return super().forward(pixels)

    images, broken = some_images(2), Broken()
    with pytest.warns(FampeWarning, match="one image at a time .*RuntimeError: the model's own mistake"):
        maps = FAMPE(broken, steps=1, samples=3).attribute(images, target=0)
    torch.testing.assert_close(maps, FAMPE(Smooth(), steps=1, samples=3).attribute(images, target=0))
    with pytest.raises(ValueError, match="one image .*the model's own mistake.*internal_batch_size is 4: set it to 1"):
        FAMPE(broken, steps=1, samples=3).attribute(images, target=0, internal_batch_size=4)

    class BrokenLater(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            if len(pixels) > 2:
                raise RuntimeError("the model's own mistake")
            return super().forward(pixels)

    with pytest.raises(RuntimeError, match="^the model's own mistake"):
        FAMPE(BrokenLater(), steps=1, samples=3).attribute(images, target=0)


@pytest.mark.parametrize("chunk", [None, 64])
def test_half_is_half_of_what_was_tried(chunk: int | None) -> None:
    """Six samples fill no chunk of eight, let alone of 64: half of either would try the same six again."""
    model = Large(4)
    with pytest.warns(FampeWarning, match=r"out of memory with 6 images .* continuing with 3"):
        FAMPE(model, steps=1, samples=6).attribute(some_images(1), target=0, internal_batch_size=chunk)
    assert model.shown[-3:] == [6, 3, 3]


def _mu_fidelity(model: torch.nn.Module, **options: Any) -> Tensor:
    images = some_images(3)
    return mu_fidelity(model, images, images, [0, 1, 2], grid_size=4, samples=7, **options).scores


def _curves(model: torch.nn.Module, **options: Any) -> Tensor:
    images = some_images(3)
    found = insertion_deletion(model, images, images, [0, 1, 2], mean=0.5, steps=5, **options)
    return torch.cat([found.insertion_curves, found.deletion_curves])


def _drops(model: torch.nn.Module, **options: Any) -> Tensor:
    return OccludedFrequency(model, bands=4)(some_images(3), [0, 1, 2], **options).drops


@pytest.mark.parametrize("score", [_mu_fidelity, _curves, _drops])
def test_what_only_scores_goes_on_with_half_as_well(score: Callable[..., Tensor]) -> None:
    """And counts no row twice; passes that keep gradients have a size of their own."""
    model = Large(5)
    with pytest.warns(
        FampeWarning, match=r"out of memory with 8 images .* continuing with 4, in later calls"
    ) as caught:
        found = score(model)
    assert caught[0].filename == __file__  # the caller's, and not the package's
    torch.testing.assert_close(found, score(Smooth()))
    model.shown.clear()
    torch.testing.assert_close(score(model), found)
    assert max(model.shown) == 4
    FAMPE(model, steps=1, samples=5).attribute(some_images(1), target=0)
    assert model.shown[-1] == 5
    message = r"out of memory with [12] images of \(3, 24, 24\) per model pass: give a smaller internal_batch_size"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        score(Large(0), internal_batch_size=4)
    known = Large(1)
    probe(known, some_images(1))
    known.most = 0
    with pytest.warns(FampeWarning, match="continuing with"), pytest.raises(torch.OutOfMemoryError, match=message):
        score(known, internal_batch_size=4)


def test_attacks_go_on_with_half_as_well() -> None:
    model = Large(3)
    with pytest.warns(FampeWarning, match="continuing with 2"):
        attacked = BandLimitedAttack(model)(some_images(4), target=0, internal_batch_size=4)
    assert attacked.images.shape == (4, 3, 24, 24)
    assert max(model.shown[3:]) == 2


def test_chunks_are_no_larger_than_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default alone: a number that was asked for is tried."""
    model, images = Large(100), some_images(1)
    each = 2 * probe(model, images).saved_bytes + 8 * images[0].numel() * 4
    for room, chunk in ((2.5, 2), (0.1, 1), (7.9, 7), (1000, 8)):
        monkeypatch.setattr("fampe_fast.runtime.chunking.free_memory", lambda device, room=room: int(room * each / 0.8))
        model.shown.clear()
        FAMPE(model, steps=1, samples=16, views=0).attribute(images, target=0)
        assert len(model.shown) == -(-16 // chunk)
        assert max(model.shown) <= chunk
        model.shown.clear()
        FAMPE(model, steps=1, samples=16, views=0).attribute(images, target=0, internal_batch_size=16)
        assert model.shown == [16]


def test_what_a_pass_keeps_is_counted() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),  # keeps what comes in, and its weight, which is the model's
        torch.nn.Sigmoid(),  # keeps its result
        torch.nn.Conv2d(4, 5, 1),  # keeps the same
        torch.nn.Flatten(),
    ).eval()
    found = probe(model, some_images(2, height=8, width=8))
    assert found.shape == (5 * 8 * 8,)
    assert found.saved_bytes == (3 + 4) * 8 * 8 * 4
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_is_asked_again_once_its_head_or_its_images_are_others() -> None:
    model = Large(100)
    for expected, size in ((2, 24), (0, 24), (2, 16)):
        model.shown.clear()
        probe(model, some_images(1, height=size, width=size))
        assert len(model.shown) == expected
    model.head = torch.nn.Linear(8, 3)
    assert probe(model, some_images()).shape == (3,)
    with pytest.raises(ValueError, match="target 4 .* out of range: the model has 3 classes"):
        FAMPE(model.eval()).attribute(some_images(), target=4)


def test_free_memory_is_known_here() -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("Linux tells how much memory is free; this system does not")
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
    assert free_memory(torch.device("meta")) is None


@pytest.mark.parametrize("shape", [(1, 1, 8, 20000), (1, 1, 20000, 8), (1, 200, 4000, 4000)])
def test_images_beyond_the_kernels_reach_are_refused(shape: tuple[int, ...]) -> None:
    images = torch.zeros(1).expand(shape)  # takes no memory
    with pytest.raises(ValueError, match=r"at most 16384 pixels a side and 1073741824 values, got \("):
        FAMPE(Smooth(), steps=1, samples=1).attribute(images, target=0)


def test_a_model_elsewhere_is_named() -> None:
    with pytest.raises(ValueError, match="is on meta and the images are on cpu"):
        FAMPE(Smooth().to("meta")).attribute(some_images(), target=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_full_says_so() -> None:
    class Hungry(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            wasted = torch.empty(2**50 if len(pixels) > 3 else 1, dtype=torch.uint8, device=pixels.device)
            return super().forward(pixels) + 0 * wasted[0]

    explain = FAMPE(Hungry().cuda(), steps=1, samples=8, compile="off")
    with (
        pytest.warns(FampeWarning, match="out of memory with 16 images .* continuing with 8"),
        pytest.raises(torch.OutOfMemoryError, match="give a smaller internal_batch_size"),
    ):
        explain.attribute(some_images(2).cuda(), target=0)


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [("3.6.0", "2.4.0", False), ("3.2.0", "1.26.4", False), ("3.6.0", "2.3.5", True), ("3.7.1", "2.5.1", True)],
)
def test_an_interpreter_that_its_numpy_breaks_says_so(
    triton: str, numpy: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    monkeypatch.setattr(backends, "version", {"triton": triton, "numpy": numpy}.__getitem__)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(backends.VARIABLE, "triton")
    if works:
        assert backends.choice("cpu")[0] == "triton"
    else:
        with pytest.raises(
            BackendUnavailableError, match=rf"triton {triton} does not work with numpy {numpy}: install"
        ):
            backends.choice("cpu")
