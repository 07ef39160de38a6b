"""The primitives as torch operators: schemas, shapes without data, gradients, tracing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fampe_fast import ops
from fampe_fast.engine.placements import draw_placements, padded_size

OPERATORS = torch.ops.fampe_fast


@pytest.fixture(autouse=True, params=["reference", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        request.getfixturevalue("triton_runs")
    monkeypatch.setenv("FAMPE_FAST_BACKEND", request.param)
    return request.param


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rows(device: torch.device) -> dict[str, Tensor]:
    return {
        "image_ids": torch.tensor([7, 3], device=device),
        "image_index": torch.tensor([0, 1, 1], device=device),
        "samples": torch.tensor([0, 4, 2], device=device),
        "seed": torch.tensor(5, device=device),
        "step": torch.tensor(1, device=device),
    }


def band_arguments(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    numbers = [[0, 0.1, 0.05, 0.9, 0.45, 0.06], [1, 0, 0.2, 0, 0.3, 0.0]]
    return {
        "spectrum": torch.fft.rfft2(random(2, 1, 8, 9, dtype=dtype)).to(device),
        "cutoff": torch.tensor([1.0, 2.5], device=device, dtype=dtype),
        "weights": torch.tensor(numbers, device=device, dtype=dtype),
        **rows(device),
        "width": 9,
        "shared_multiplier": False,
    }


def dct_arguments(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    weights = torch.tensor([[0.5, 0.06], [0.3, 0.0]], device=device, dtype=dtype)
    return {"spectrum": random(2, 1, 8, 9, dtype=dtype).to(device), "weights": weights, **rows(device)}


def placements(device: torch.device) -> Tensor:
    return torch.tensor([p for p in draw_placements(0, 1, 20, 8, 9)[0] if p is not None][:2], device=device)


def diversify_arguments(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return random(2, 1, 8, 9, dtype=dtype).to(device), placements(device), padded_size(8), padded_size(9), False


def mask_arguments(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    steps = torch.randint(0, 4, (2, 8, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    images = (random(2, 3, 8, 9, seed=seed, dtype=dtype).to(device) for seed in (1, 2))
    return *images, steps.to(device), torch.tensor([0, 1, 1], device=device), torch.tensor([1, 0, 3], device=device)


def step_arguments(device: torch.device) -> tuple[Any, ...]:
    images = [random(2, 1, 8, 9, seed=seed).to(device) for seed in range(5)]
    return *images, torch.tensor([0.25, 0.5, 0.25], device=device), 20, 1.0, 0.006, 0.06, 0.0, 1.0


def calls(device: torch.device) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    total = random(2, 1, 8, 9).to(device)
    frames = random(2, 1, padded_size(8), padded_size(9)).to(device)
    spectrum = band_arguments(device)["spectrum"]
    return {
        "radial_mask": (OPERATORS.radial_mask.default, (torch.tensor([1.0, 2.5], device=device), 8, 9)),
        "energy_cutoff": (OPERATORS.energy_cutoff.default, (spectrum, 9, 0.9, False)),
        "band_mix": (OPERATORS.band_mix.default, tuple(band_arguments(device).values())),
        "dct_mix": (OPERATORS.dct_mix.default, tuple(dct_arguments(device).values())),
        "diversify": (OPERATORS.diversify.default, diversify_arguments(device)),
        "diversify channels last": (OPERATORS.diversify.default, (*diversify_arguments(device)[:4], True)),
        "diversify_adjoint": (OPERATORS.diversify_adjoint.default, (frames, placements(device), 8, 9)),
        "accumulate": (
            OPERATORS.accumulate.default,
            (total, random(3, 1, 8, 9).to(device), torch.tensor([1, 0, 1], device=device)),
        ),
        "gradient_step": (OPERATORS.gradient_step.default, step_arguments(device)),
        "pixel_mask": (OPERATORS.pixel_mask.default, mask_arguments(device)),
        "irfft2": (OPERATORS.irfft2.default, (spectrum, 9)),
        "irfft2 of even width": (OPERATORS.irfft2.default, (spectrum, 8)),
        "separable_transform": (
            OPERATORS.separable_transform.default,
            (total, random(8, 8).to(device), random(7, 9).to(device)),
        ),
    }


@pytest.mark.parametrize("name", list(calls(torch.device("cpu"))))
def test_opcheck(name: str, device: torch.device) -> None:
    """Schema, declared mutation, fake shapes and strides, autograd registration, tracing with dynamic shapes."""
    operator, arguments = calls(device)[name]
    torch.library.opcheck(operator, arguments)


DIFFERENTIABLE = {
    "radial_mask": lambda d: (OPERATORS.radial_mask.default, (torch.tensor([1.0, 2.5], dtype=torch.float64), 8, 9), 1),
    "band_mix": lambda d: (OPERATORS.band_mix.default, tuple(band_arguments(d, torch.float64).values()), 1),
    "dct_mix": lambda d: (OPERATORS.dct_mix.default, tuple(dct_arguments(d, torch.float64).values()), 1),
    "diversify": lambda d: (OPERATORS.diversify.default, diversify_arguments(d, torch.float64), 1),
    "pixel_mask": lambda d: (OPERATORS.pixel_mask.default, mask_arguments(d, torch.float64), 2),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact to float64's finite differences, so on the reference, which takes float64."""
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    operator, arguments, inputs = DIFFERENTIABLE[name](torch.device("cpu"))
    leaves = tuple(argument.clone().requires_grad_() for argument in arguments[:inputs])
    assert torch.autograd.gradcheck(lambda *values: operator(*values, *arguments[inputs:]), leaves)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_the_reference(name: str, device: torch.device) -> None:
    """Against autograd through the plain reference in float64, which knows nothing of our backward formulas."""
    from fampe_fast.ops.backends import OPS

    module = __import__(f"fampe_fast.reference.{OPS[name]}", fromlist=[name])
    _, exact_arguments, inputs = DIFFERENTIABLE[name](torch.device("cpu"))
    operator, arguments = calls(device)[name]

    def gradients(function: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
        leaves = [argument.detach().clone().requires_grad_() for argument in arguments[:inputs]]
        outputs = function(*leaves, *arguments[inputs:])
        total = 0
        for k, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
            values = torch.view_as_real(output) if output.is_complex() else output
            weights = random(*values.shape, seed=k, dtype=torch.float64).to(values)
            total = total + (values * weights).sum()
        return list(torch.autograd.grad(total, leaves))

    if name == "radial_mask":
        arguments = (exact_arguments[0].float().to(device), *arguments[1:])
    for got, exact in zip(
        gradients(operator, arguments), gradients(getattr(module, name), exact_arguments), strict=True
    ):
        scale = exact.abs().max()
        assert scale > 0
        assert (got.cpu().to(exact.dtype) - exact).abs().max() < 1e-5 * scale


def test_what_has_no_gradient_says_so(device: torch.device) -> None:
    arguments = band_arguments(device)
    arguments["weights"] = arguments["weights"].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="not in weights"):
        ops.band_mix(**arguments)
    images = [image.clone().requires_grad_() for image in step_arguments(device)[:5]]
    result = ops.gradient_step(*images, *step_arguments(device)[5:])
    with pytest.raises(RuntimeError, match="autograd"):
        result.images.sum().backward()


def test_a_user_can_differentiate_from_samples_to_the_image(device: torch.device) -> None:
    """The chain rfft2 -> mix -> irfft2 is linear in the image: its gradient is the transpose, whatever the image."""
    arguments = band_arguments(device)
    direction = random(3, 1, 8, 9, seed=9).to(device)

    def gradient(image: Tensor) -> Tensor:
        image = image.to(device).requires_grad_()
        mixed = ops.band_mix(**{**arguments, "spectrum": torch.fft.rfft2(image)})
        samples = torch.fft.irfft2(mixed, s=(8, 9))
        (found,) = torch.autograd.grad((samples * direction).sum(), image)
        return found

    first, second = gradient(random(2, 1, 8, 9, seed=3)), gradient(random(2, 1, 8, 9, seed=4))
    torch.testing.assert_close(first, second)

    def draw(image: Tensor) -> Tensor:
        mixed = ops.band_mix(**{**arguments, "spectrum": torch.fft.rfft2(image)})
        return torch.fft.irfft2(mixed, s=(8, 9))

    image, step = random(2, 1, 8, 9, seed=3).to(device), random(2, 1, 8, 9, seed=5).to(device)
    moved = ((draw(image + step) - draw(image)) * direction).sum()
    torch.testing.assert_close(moved, (step * first).sum(), rtol=1e-4, atol=1e-5)


def test_operators_are_traced_without_a_break(device: torch.device) -> None:
    """Fullgraph, and the result that of the plain call, to the bit."""
    torch._dynamo.reset()

    def chain(values: dict[str, Any]) -> Tensor:
        return torch.fft.irfft2(ops.band_mix(**values), s=(8, 9))

    arguments = band_arguments(device)
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(arguments), chain(arguments))


def test_the_separable_transform_is_two_matrix_products(device: torch.device) -> None:
    values, down, across = random(2, 3, 8, 9), random(5, 8, seed=1), random(6, 9, seed=2)
    got = ops.separable_transform(values.to(device), down.to(device), across.to(device)).cpu()
    exact = torch.einsum("bchw,kh,lw->bckl", values.double(), down.double(), across.double())
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-6)
