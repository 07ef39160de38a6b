"""The package as it is installed: what importing costs, the wheel, the backends' table."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import fampe_fast
from fampe_fast.errors import BackendUnavailableError
from fampe_fast.ops import backends
from fampe_fast.reference.band_mix import band_mix
from fampe_fast.testing import Case
from fampe_fast.testing.arguments import example_arguments

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, cwd: Path | None = None, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,  # the folder python -c stands in comes first on its path
        env={**os.environ, **environment},
    ).stdout


@pytest.mark.slow
def test_importing_loads_nothing_heavy_and_touches_no_device() -> None:
    heavy = run("""
        import sys, fampe_fast, fampe_fast.cli
        from fampe_fast import FAMPE, load_classifier, insertion_deletion, create_method
        import fampe_fast.plots, fampe_fast.ops, fampe_fast.images
        import torch
        assert not torch.cuda.is_initialized()
        heavy = ("triton", "timm", "torchvision", "matplotlib", "captum", "rich")
        print([name for name in heavy if name in sys.modules])
    """)
    assert heavy.strip() == "[]"


def test_the_bare_package_does_not_even_load_torch() -> None:
    assert run("import sys, fampe_fast; print('torch' in sys.modules)").strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "passes=10, compile='off'"])
def test_a_map_on_a_cpu_loads_no_compiler(options: str) -> None:
    """Which takes longer than the map; the reference mixes the samples, for the CPU's own backend is compiled."""
    loaded = run(
        f"""
        import sys, torch
        from fampe_fast import FAMPE, insertion_deletion
        from fampe_fast.models.embedded import load_embedded_classifier
        model, images, targets = load_embedded_classifier(), torch.rand(1, 3, 96, 96), torch.tensor([0])
        maps = FAMPE(model, {options}).attribute(images, targets)
        insertion_deletion(model, images, maps, targets, steps=2)
        print("torch._dynamo" in sys.modules)
        """,
        FAMPE_FAST_BACKEND="reference" if options else "auto",
    )
    assert loaded.strip() == "False"


def test_every_public_name_is_there() -> None:
    for name in fampe_fast.__all__:
        assert getattr(fampe_fast, name) is not None
        assert name in dir(fampe_fast)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fampe_fast.nonsense


LINKS = ("kernels", "reference")


def copy_of_the_checkout(folder: Path, *, links: bool) -> Path:
    """Copy what git tracks of the package; without links, with what git makes of them on Windows: text files."""
    names = ["setup.py", "pyproject.toml", "README.md", "fampe_fast", "kernels", "reference"]
    source = folder / "source"
    source.mkdir(parents=True)
    subprocess.run(["cp", "-r", *[str(ROOT / name) for name in names], str(source)], check=True)
    for name in LINKS:
        link = source / "fampe_fast" / name
        assert link.is_symlink()
        if not links:
            link.unlink()
            link.write_text(f"../{name}")
    return source


def built(source: Path) -> tuple[Path, Path]:
    """Build the wheel and the sdist of a copy."""
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source.parent / "dist"), str(source)]
    subprocess.run([*command, "--wheel", "--sdist"], check=True, capture_output=True)
    return next(source.parent.glob("dist/*.whl")), next(source.parent.glob("dist/*.tar.gz"))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return built(copy_of_the_checkout(tmp_path_factory.mktemp("linked"), links=True))


@pytest.fixture(scope="module")
def wheel(distributions: tuple[Path, Path]) -> Path:
    return distributions[0]


def files_of(archive: Path) -> set[str]:
    """List the files of a wheel or an sdist, without its own name."""
    if archive.suffix == ".whl":
        return {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}
    with tarfile.open(archive) as content:
        assert not [member.name for member in content if member.issym() or member.islnk()]
        return {member.name.partition("/")[2] for member in content if member.isfile()}


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_same_files_with_and_without_links(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = built(copy_of_the_checkout(tmp_path / "plain", links=False))
    for linked, other in zip(distributions, plain, strict=True):
        assert files_of(linked) == files_of(other)
    with tarfile.open(distributions[1]) as content:
        content.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    again = built(unpacked.rename(unpacked.with_name("source")))[0]
    assert files_of(again) == files_of(distributions[0])
    modules = {name for name in files_of(distributions[0]) if name.endswith(".py")}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fampe_fast").rglob("*.py") if not links_of(path)}
    expected |= {f"fampe_fast/{name}/{path.name}" for name in LINKS for path in (ROOT / name).glob("*.py")}
    assert modules == expected


def links_of(path: Path) -> list[Path]:
    return [parent for parent in path.parents if parent.is_symlink()]


@pytest.mark.slow
def test_a_checkout_without_links_works(tmp_path: Path) -> None:
    source = copy_of_the_checkout(tmp_path, links=False)
    output = run(
        """
        import sys
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
        import fampe_fast.reference.philox, fampe_fast.kernels
        print(fampe_fast.reference.philox.__file__, fampe_fast.kernels.__file__)
        """,
        source,
    ).split()
    assert output == [str(source / "reference" / "philox.py"), str(source / "kernels" / "__init__.py")]


@pytest.mark.slow
def test_the_wheel_holds_the_mapped_folders_the_weights_and_no_other_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fampe_fast"}
    for expected in (
        "fampe_fast/py.typed",
        "fampe_fast/kernels/__init__.py",
        "fampe_fast/reference/philox.py",
        "fampe_fast/serve/page.html",
        "fampe_fast/weights/embedded_classifier.safetensors",
        "fampe_fast/weights/embedded_classifier.json",
    ):
        assert expected in names
    assert wheel.stat().st_size < 1.5 * 2**20  # a third of it is the weights


@pytest.mark.slow
def test_the_wheel_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    output = run(
        """
        import fampe_fast, fampe_fast.reference, fampe_fast.kernels
        from fampe_fast.images.generated import generate
        maps = fampe_fast.FAMPE(fampe_fast.load_embedded_classifier(), steps=1, samples=1).attribute(generate(1).images)
        print(fampe_fast.__file__, fampe_fast.reference.__file__, float(maps.sum()) > 0)
        """,
        tmp_path,
        PYTHONPATH=str(site),
        PYTHONNOUSERSITE="1",
    ).split()
    assert output[0].startswith(str(site))
    assert output[1].startswith(str(site / "fampe_fast" / "reference"))
    assert output[2] == "True"


def test_a_checkout_works_where_another_copy_is_installed() -> None:
    """Python started in the folder finds the package there first, without the parts that installing puts into it."""
    output = run(
        """
        import sys
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
        import fampe_fast, fampe_fast.reference, fampe_fast.kernels
        print(fampe_fast.__file__, fampe_fast.reference.__file__, fampe_fast.kernels.__file__)
        """,
        ROOT,
    ).split()
    folders = ("fampe_fast", "reference", "kernels")
    assert [Path(file).resolve().parent for file in output] == [ROOT / name for name in folders]


@pytest.mark.slow
def test_a_checkout_offers_no_other_folder_as_part_of_the_package() -> None:
    output = run(
        """
        import importlib.util, pkgutil
        import fampe_fast
        for name in ("tests", "benchmarks", "docs", "setup", "conftest"):
            print(importlib.util.find_spec(f"fampe_fast.{name}"))
            try:
                __import__(f"fampe_fast.{name}")
            except ModuleNotFoundError as error:
                print(error.name)
        import fampe_fast.kernels.band_mix, fampe_fast.reference.band_mix
        """,
        ROOT,
    ).split()
    names = ("tests", "benchmarks", "docs", "setup", "conftest")
    assert output == [word for name in names for word in ("None", f"fampe_fast.{name}")]


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("fampe-fast")
    if not command.exists():
        pytest.skip("the package is not installed with its scripts")
    version = subprocess.run([str(command), "--version"], capture_output=True, text=True, check=True).stdout
    assert version.strip() == f"fampe-fast {fampe_fast.__version__}"


# --- the table of backends -------------------------------------------------------------------------------------------


def test_auto_chooses_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    name, reason = backends.choice("cpu")
    assert name in ("compiled", "reference")
    assert "cpu" in reason


def test_auto_falls_back_to_the_reference_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    backends._choice.cache_clear()
    try:
        name, reason = backends.choice("cpu")
        assert name == "reference"
        assert "no C++ compiler found" in reason
        monkeypatch.setenv(backends.VARIABLE, "compiled")
        with pytest.raises(BackendUnavailableError, match=r"'compiled' cannot run: no C\+\+ compiler"):
            backends.choice("cpu")
    finally:
        backends._choice.cache_clear()


def test_an_explicit_choice_that_cannot_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailableError, match="Triton kernels need a GPU"):
        backends.choice("cpu")
    monkeypatch.setenv(backends.VARIABLE, "tritn")
    with pytest.raises(BackendUnavailableError, match=r"'tritn': unknown; known are auto, triton, compiled, reference"):
        fampe_fast.ops.radial_mask(torch.ones(1), 8, 8)


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.VARIABLE, "triton")
    real = backends.importlib.util.find_spec
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None if name == "triton" else real(name))
    backends._choice.cache_clear()
    try:
        with pytest.raises(BackendUnavailableError, match="triton is not installed"):
            backends.choice("cpu")
    finally:
        backends._choice.cache_clear()


NOT_INSTALLED = "import sys; sys.modules['triton'] = None"
"""Importing it then raises what it raises where it is not installed."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--out", "demo"],
        ["explain", "photo.png", "--model", "small.pt", "--steps", "1", "--samples", "2", "--views", "0"],
        ["doctor"],
    ],
    ids=["demo", "explain", "doctor"],
)
def test_no_command_needs_triton(words: list[str], model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "small.pt").symlink_to(model_file)
    Image.new("RGB", (96, 96), "red").save(tmp_path / "photo.png")
    code = f"{NOT_INSTALLED}; from fampe_fast.cli import main; assert main({words!r}) == 0"
    run(code, tmp_path, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")


@pytest.mark.slow
def test_the_triton_backend_says_what_to_install_where_it_is_missing(tmp_path: Path) -> None:
    code = f"{NOT_INSTALLED}; from fampe_fast.cli import main; sys.stderr = sys.stdout; assert main(['demo']) == 2"
    said = run(code, tmp_path, PYTHONPATH=str(ROOT), FAMPE_FAST_BACKEND="triton", TRITON_INTERPRET="1")
    assert said.count("\n") == 1
    assert "FAMPE_FAST_BACKEND='triton' cannot run: the package triton is not installed: pip install triton" in said


def test_another_backend_can_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def radial_mask(cutoff: torch.Tensor, height: int, width: int, shape: str) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append((height, width))
        return cutoff.clone(), cutoff.clone()

    fampe_fast.register_backend("mine", {"radial_mask": radial_mask}, device_types=("cpu",))
    try:
        monkeypatch.setenv(backends.VARIABLE, "mine")
        fampe_fast.ops.radial_mask(torch.ones(1), 8, 9)
        assert calls == [(8, 9)]
        spectrum = torch.fft.rfft2(torch.rand(1, 1, 8, 8))
        assert fampe_fast.ops.energy_cutoff(spectrum, 8).shape == (1,)  # the reference serves what it lacks
        with pytest.raises(BackendUnavailableError, match="takes .* tensors, got meta"):
            backends.choice("meta")
    finally:
        backends._BACKENDS.pop("mine")
        backends._choice.cache_clear()
        backends._resolve.cache_clear()
    with pytest.raises(ValueError, match="the package's own"):
        fampe_fast.register_backend("triton", {})
    with pytest.raises(ValueError, match=r"unknown primitives \['fft'\]"):
        fampe_fast.register_backend("mine", {"fft": radial_mask})


def test_samples_are_made_with_a_backend_s_own_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = example_arguments("band_samples", Case(8, 8), "cpu")
    expected = fampe_fast.ops.band_samples(**arguments)
    fampe_fast.register_backend("mine", {"band_mix": lambda *values: 2 * band_mix(*values)})
    try:
        monkeypatch.setenv(backends.VARIABLE, "mine")
        torch.testing.assert_close(fampe_fast.ops.band_samples(**arguments), 2 * expected)
    finally:
        backends._BACKENDS.pop("mine")
        backends._choice.cache_clear()
        backends._resolve.cache_clear()


class Offer:
    """An entry point, as ``importlib.metadata`` gives it."""

    value = "their_package:register"

    def __init__(self, register: Callable[[], None]) -> None:
        self.load = lambda: register


def test_a_backend_of_another_package_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def register() -> None:
        fampe_fast.register_backend("theirs", {"radial_mask": lambda cutoff, *size: (cutoff + 1, cutoff + 2)})

    def fail() -> None:
        raise OSError("no such library")

    offers = {"theirs": register, "broken": fail}
    monkeypatch.setattr(
        backends,
        "entry_points",
        lambda group, name: [Offer(offers[name])] if group == "fampe_fast.backends" and name in offers else [],
    )
    try:
        monkeypatch.setenv(backends.VARIABLE, "theirs")
        assert [float(mask) for mask in fampe_fast.ops.radial_mask(torch.ones(1), 8, 9)] == [2, 3]
        monkeypatch.setenv(backends.VARIABLE, "broken")
        with pytest.raises(BackendUnavailableError, match="their_package:register failed: OSError.*no such library"):
            backends.choice("cpu")
        monkeypatch.setenv(backends.VARIABLE, "nobodys")
        with pytest.raises(BackendUnavailableError, match=r"known are auto, .*entry point in the group"):
            backends.choice("cpu")
    finally:
        backends._BACKENDS.pop("theirs", None)
        backends._choice.cache_clear()
        backends._resolve.cache_clear()


def test_a_failing_compiler_costs_a_warning_and_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from fampe_fast.errors import FampeWarning
    from fampe_fast.ops import compiled

    monkeypatch.setattr(compiled, "COMPILE_AFTER", 0)

    def fail(*args: object, **options: object) -> object:
        raise RuntimeError("cc1plus: out of luck")

    monkeypatch.setattr(torch, "compile", lambda *args, **options: fail)
    worthwhile = compiled._CompiledWhenWorthwhile(lambda values, factor: values * factor, "the mix")
    values = torch.arange(3.0)
    with pytest.warns(FampeWarning, match=r"failed for the mix, which now runs uncompiled: .*out of luck"):
        assert torch.equal(worthwhile(values, 2), values * 2)
    assert torch.equal(worthwhile(values, 3), values * 3)  # silently from then on
