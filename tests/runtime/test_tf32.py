"""The tf32 switches: old and new ones agree while ours is set, and all come back. They exist without a GPU too."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings

import pytest
import torch

from fampe_fast.runtime.tf32 import tensor_float32


def state() -> list[object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: list[object] = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
        found.append(torch.get_float32_matmul_precision())
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            cudnn = torch.backends.cudnn
            owners = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
            found += [owner.fp32_precision for owner in owners]
    return found


@pytest.mark.parametrize("enabled", [True, False])
def test_every_way_to_ask_gives_the_same_answer(enabled: bool) -> None:
    before = state()
    with tensor_float32(enabled):
        inside = state()
        with tensor_float32(not enabled):
            assert state()[:2] == [not enabled, not enabled]
        assert state() == inside
    assert inside[:2] == [enabled, enabled]
    assert all((precision == "tf32") is enabled for precision in inside[3:])
    assert state() == before


def test_it_comes_back_after_an_error() -> None:
    before = state()
    with pytest.raises(ZeroDivisionError), tensor_float32(not before[0]):
        raise ZeroDivisionError
    assert state() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_float32_matmul_precision('high')",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_what_the_caller_has_set_comes_back(setting: str) -> None:
    """In a process of its own, as torch keeps these for the whole process."""
    if ".fp32_precision" in setting and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip(f"torch {torch.__version__} has no such switch")
    script = textwrap.dedent(
        f"""
        import torch
        from fampe_fast.runtime.tf32 import tensor_float32

        def precisions():
            cudnn = torch.backends.cudnn
            owners = [torch.backends.cuda.matmul, *(getattr(cudnn, name, None) for name in ("conv", "rnn"))]
            found = [owner.fp32_precision for owner in owners if hasattr(owner, "fp32_precision")]
            return found or [owners[0].allow_tf32, cudnn.allow_tf32]

        {setting}
        before = precisions()
        for enabled in (True, False):
            with tensor_float32(enabled):
                for precision in precisions():
                    assert (precision == "tf32" or precision is True) is enabled, precisions()
            assert precisions() == before, (enabled, before, precisions())
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
