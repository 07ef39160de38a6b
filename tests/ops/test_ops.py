"""The primitives as torch operators: schemas, shapes without data, gradients, tracing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from fampe_fast import ops
from fampe_fast.ops import backends
from fampe_fast.ops.backends import OPS
from fampe_fast.ops.registration import DIFFERENTIABLE, MUTATED
from fampe_fast.testing import Case, assert_same, load_primitives
from fampe_fast.testing.arguments import exactly, example_arguments, moved, random
from fampe_fast.testing.checks.combine_layers import with_layers
from fampe_fast.testing.checks.common import tensors

CASE = Case(8, 9, batch=2, channels=1, rows=3, taps=3)
COLOUR = Case(8, 9, batch=2, channels=3, rows=3)


@pytest.fixture(autouse=True, params=["reference", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        request.getfixturevalue("triton_runs")
    monkeypatch.setenv("FAMPE_FAST_BACKEND", request.param)
    return request.param


def in_channels_last(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "start": arguments["start"].contiguous(memory_format=torch.channels_last)}


def halves_in_channels_last(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: values.bfloat16().to(memory_format=torch.channels_last) for name, values in arguments.items()}


SPECTRUM = torch.fft.rfft2(random(2, 1, 8, 9))
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    **{op: (op, example_arguments(op, CASE, "cpu")) for op in OPS},
    "diversify channels last": ("diversify", example_arguments("diversify", CASE, "cpu", channels_last=True)),
    **{
        f"{op} of a {shape}": (op, example_arguments(op, replace(CASE, mask=shape), "cpu"))
        for op in ("radial_mask", "band_mix")
        for shape in ("disc", "butterworth")
    },
    "energy_cutoff without DC": ("energy_cutoff", example_arguments("energy_cutoff", CASE, "cpu", include_dc=False)),
    "pixel_mask channels last": ("pixel_mask", in_channels_last(example_arguments("pixel_mask", COLOUR, "cpu"))),
    "layer_evidence of halves": (
        "layer_evidence",
        halves_in_channels_last(example_arguments("layer_evidence", COLOUR, "cpu")),
    ),
    "combine_layers without layers": (
        "combine_layers",
        with_layers(example_arguments("combine_layers", CASE, "cpu"), []),
    ),
    "irfft2": ("irfft2", {"spectrum": SPECTRUM, "width": 9}),
    "irfft2 of even width": ("irfft2", {"spectrum": SPECTRUM, "width": 8}),
    "separable_transform": (
        "separable_transform",
        {"values": random(2, 3, 8, 9), "rows": random(8, 8, seed=1), "columns": random(7, 9, seed=2)},
    ),
}
"""Operator and arguments."""
DIFFERENTIATED = [
    name for name, (op, _) in EXAMPLES.items() if op in DIFFERENTIABLE and name != "radial_mask of a disc"
]
"""What has a gradient to compare, which a step has not."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_opcheck(name: str, device: torch.device) -> None:
    """Schema, declared mutation, fake shapes and strides, autograd registration, tracing with dynamic shapes."""
    op, arguments = EXAMPLES[name]
    torch.library.opcheck(getattr(torch.ops.fampe_fast, op).default, tuple(moved(arguments, device).values()))


def test_the_smooth_primitives_have_gradients() -> None:
    smooth = {"radial_mask", "band_mix", "dct_mix", "diversify", "diversify_adjoint", "pixel_mask"}
    assert smooth <= set(DIFFERENTIABLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradcheck(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact to float64's finite differences, so on the reference, which takes float64."""
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    op, arguments = EXAMPLES[name][0], exactly(EXAMPLES[name][1])
    leaves = [arguments[name].clone().requires_grad_() for name in DIFFERENTIABLE[op]]

    def call(*values: Tensor) -> Any:
        return getattr(ops, op)(**{**arguments, **dict(zip(DIFFERENTIABLE[op], values, strict=True))})

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients_are_those_of_the_reference(name: str, device: torch.device) -> None:
    """Against autograd through the plain reference in float64, which knows nothing of our backward formulas."""

    op = EXAMPLES[name][0]

    def gradients(function: Any, arguments: dict[str, Any]) -> list[Tensor]:
        leaves = {name: arguments[name].detach().clone().requires_grad_() for name in DIFFERENTIABLE[op]}
        outputs = function(**{**arguments, **leaves})
        total = 0
        for k, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
            values = torch.view_as_real(output) if output.is_complex() else output
            total = total + (values * random(*values.shape, seed=k).to(values)).sum()
        return list(torch.autograd.grad(total, list(leaves.values())))

    arguments = moved(EXAMPLES[name][1], device)
    exactly_known = gradients(load_primitives("reference", "cpu")[op], exactly(arguments))
    for got, exact in zip(gradients(getattr(ops, op), arguments), exactly_known, strict=True):
        scale = exact.abs().max()
        assert scale > 0
        assert (got.cpu().to(exact.dtype) - exact).abs().max() < 1e-5 * scale


def test_a_disc_does_not_move_with_its_cutoff(device: torch.device) -> None:
    cutoff = torch.tensor([2.5, 4.0], device=device, requires_grad=True)
    low, high = ops.radial_mask(cutoff, 8, 9, "disc")
    (gradient,) = torch.autograd.grad((low * 2 + high).sum(), cutoff)
    assert gradient.tolist() == [0, 0]


def test_an_unknown_shape_is_named(device: torch.device) -> None:
    for call in (
        lambda: ops.radial_mask(torch.ones(1, device=device), 8, 9, "box"),
        lambda: ops.band_mix(**example_arguments("band_mix", CASE, device, shape="box")),
    ):
        with pytest.raises(ValueError, match="shape must be one of gaussian, disc, butterworth; got 'box'"):
            call()


def test_what_has_no_gradient_says_so(device: torch.device) -> None:
    arguments = example_arguments("band_mix", CASE, device)
    arguments["weights"] = arguments["weights"].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="band_mix is differentiable in spectrum, not in weights: detach it"):
        ops.band_mix(**arguments)
    arguments = example_arguments("gradient_step", CASE, device)
    arguments["images"] = arguments["images"].clone().requires_grad_()
    result = ops.gradient_step(**arguments)
    with pytest.raises(RuntimeError, match="autograd"):
        result.images.sum().backward()


def test_autograd_knows_of_a_change(device: torch.device) -> None:
    arguments = example_arguments("accumulate", CASE, device)
    arguments = {**arguments, "total": arguments["total"].clone()}
    before = arguments["total"]._version
    ops.accumulate(**arguments)
    assert arguments["total"]._version > before
    with torch.inference_mode():
        ops.accumulate(**{**arguments, "total": arguments["total"].clone()})


def test_a_backend_that_returns_its_argument_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fampe_fast.ops.registration.implementation", lambda op, device: lambda first, *rest: first[:])
    with pytest.raises(RuntimeError, match="layer_evidence returned a tensor that shares memory with an argument"):
        ops.layer_evidence(**example_arguments("layer_evidence", CASE, "cpu"))


def test_the_compiler_leaves_a_backend_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the call itself is not part of a graph."""
    torch._dynamo.reset()
    traced = []

    def body(first: Tensor, *rest: Any) -> Tensor:
        traced.append(torch.compiler.is_dynamo_compiling())
        return first.sum(1)

    monkeypatch.setattr("fampe_fast.ops.registration.implementation", lambda op, device: body)
    arguments = tuple(example_arguments("layer_evidence", CASE, "cpu").values())
    before = counters["stats"]["unique_graphs"]

    @torch.compile(backend="eager")
    def outer() -> Tensor:
        return inner()

    @torch.compiler.disable(recursive=False)
    def inner() -> Tensor:
        return torch.ops.fampe_fast.layer_evidence(*arguments)

    outer()
    assert traced == [False]
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
def test_a_user_can_differentiate_from_samples_to_the_image(device: torch.device) -> None:
    """The chain rfft2 -> mix -> irfft2 is linear in the image: its gradient is the transpose, whatever the image."""
    arguments = example_arguments("band_mix", CASE, device)
    direction = random(3, 1, 8, 9, seed=9).to(device)

    def draw(image: Tensor) -> Tensor:
        mixed = ops.band_mix(**{**arguments, "spectrum": torch.fft.rfft2(image)})
        return torch.fft.irfft2(mixed, s=(8, 9))

    def gradient(image: Tensor) -> Tensor:
        image = image.to(device).requires_grad_()
        (found,) = torch.autograd.grad((draw(image) * direction).sum(), image)
        return found

    first, second = gradient(random(2, 1, 8, 9, seed=3)), gradient(random(2, 1, 8, 9, seed=4))
    torch.testing.assert_close(first, second)
    image, step = random(2, 1, 8, 9, seed=3).to(device), random(2, 1, 8, 9, seed=5).to(device)
    change = ((draw(image + step) - draw(image)) * direction).sum()
    torch.testing.assert_close(change, (step * first).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_operators_are_traced_without_a_break(name: str, device: torch.device) -> None:
    """Fullgraph, and the result that of the plain call, to the bit."""
    torch._dynamo.reset()
    op, arguments = EXAMPLES[name]

    def call(values: dict[str, Any]) -> Any:
        values = {key: value.clone() if key in MUTATED.get(op, ()) else value for key, value in values.items()}
        result = getattr(ops, op)(**values)
        return [values[key] for key in MUTATED[op]] if result is None else result

    arguments = moved(arguments, device)
    got, expected = torch.compile(call, fullgraph=True, backend="aot_eager")(arguments), call(arguments)
    assert type(got) is type(expected)
    for one, other in zip(tensors(got), tensors(expected), strict=True):
        assert_same(one, other)


def test_the_separable_transform_is_two_matrix_products(device: torch.device) -> None:
    values, down, across = random(2, 3, 8, 9), random(5, 8, seed=1), random(6, 9, seed=2)
    got = ops.separable_transform(values.to(device), down.to(device), across.to(device)).cpu()
    exact = torch.einsum("bchw,kh,lw->bckl", values.double(), down.double(), across.double())
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-6)


def test_devices_without_float64_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, lacks in ((0, True), (1, False)):
        properties = SimpleNamespace(has_fp64=has)
        monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device, found=properties: found)
        assert backends.lacks_float64(torch.device("xpu", 0)) is lacks
    assert backends.lacks_float64(torch.device("mps"))
    assert not backends.lacks_float64(torch.device("cpu"))


@pytest.mark.parametrize("name", [*sorted(backends.FLOAT64), "radial_mask of a disc", "band_mix of a disc"])
def test_without_float64_the_cpu_computes_what_needs_it(name: str, device: torch.device) -> None:
    op, arguments = EXAMPLES[name]
    run = backends._without_float64(op, lambda *values: pytest.fail("the device computes it"))
    got = tensors(run(*moved(arguments, device).values()))
    expected = tensors(load_primitives("reference", "cpu")[op](**arguments))
    for one, other in zip(got, expected, strict=True):
        assert one.device.type == device.type
        assert_same(one, other.to(device), name)


def test_without_float64_the_device_computes_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    backends._without_float64("band_mix", lambda *values: seen.append(values))(*EXAMPLES["band_mix"][1].values())
    assert len(seen) == 1
    monkeypatch.setattr(backends, "lacks_float64", lambda device: True)
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "auto")
    cpu = torch.device("cpu")
    for cached in (backends._choice, backends._resolve):
        monkeypatch.setattr(backends, cached.__name__, cached.__wrapped__)
    assert "no float64, so the CPU computes combine_layers, energy_cutoff, gradient_step" in backends.choice(cpu)[1]
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    assert "_without_float64" in backends.implementation("gradient_step", cpu).__qualname__
