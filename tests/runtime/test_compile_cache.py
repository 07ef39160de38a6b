"""What ``torch.compile`` has made, carried to another process in a file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import ROOT
from fampe_fast.cli import DONE, UNUSABLE, main
from fampe_fast.errors import FampeWarning
from fampe_fast.files import mark_of
from fampe_fast.models.embedded import load_embedded_classifier
from fampe_fast.ops.backends import _compiler_obstacle
from fampe_fast.runtime import compile_cache
from fampe_fast.runtime.compilation import Compiled

COMPILE = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from fampe_fast.runtime.compilation import Compiled
from fampe_fast.runtime.compile_cache import save_compile_cache

layer = torch.nn.Linear(4, 3)
Compiled(lambda values: layer(values).tanh().sum(), "a layer")(torch.ones(2, 4))
if len(sys.argv) > 1:
    save_compile_cache(Path(sys.argv[1]))
print(json.dumps({name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}))
"""


def compiled_in_a_process(caches: Path, *arguments: str, **environment: str) -> dict[str, int]:
    """Compile a layer with torch's caches in this folder, and count what torch found in them."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *arguments],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(caches), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(_compiler_obstacle("cpu") is not None, reason="no C++ compiler here")
def test_another_process_finds_what_was_saved(tmp_path: Path) -> None:
    saved, caches = tmp_path / "saved", tmp_path / "caches"

    def without_graphs(name: str) -> Path:
        """Copy torch's caches but for those of graphs: a C++ compiler need not translate the same program again."""
        graphs = shutil.ignore_patterns("fxgraph", "aotautograd")
        return shutil.copytree(caches, tmp_path / name, ignore=graphs)

    assert compiled_in_a_process(caches, str(saved)) == {"hit": 0, "miss": 1}
    assert (caches / "fxgraph").is_dir()
    assert mark_of(saved).kind == "compile cache"
    loading = {compile_cache.VARIABLE: str(saved)}
    # What was loaded can be saved again.
    again = tmp_path / "again"
    assert compiled_in_a_process(without_graphs("third"), str(again), **loading) == {"hit": 1, "miss": 0}
    loading = {"FAMPE_FAST_COMPILE_CACHE": str(again)}
    assert compiled_in_a_process(without_graphs("fourth"), **loading) == {"hit": 1, "miss": 0}


def content(**others: str) -> bytes:
    return f"{json.dumps({'fampe_fast': 'compile cache', **compile_cache._surroundings(), **others})}\n".encode()


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (None, "No such file"),
        (b"\x89PNG", "it was not written by fampe-fast warmup --save"),
        (b'{"fampe_fast": "figure"}\n', "it was not written by fampe-fast warmup --save"),
        (b"{nonsense", "Expecting property name"),
        (content(torch="1.0", device="Z80") + b"torch's", "torch 1.0 there and .* here, device Z80 there and"),
        (content() + b"not torch's", "it is damaged"),
    ],
    ids=["missing", "a picture", "another kind", "no JSON", "other versions", "damaged"],
)
def test_a_file_of_no_use_costs_a_warning(
    written: bytes | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if written is not None:
        path.write_bytes(written)
    monkeypatch.setenv(compile_cache.VARIABLE, str(path))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with pytest.warns(FampeWarning, match=f"is not used, and everything is compiled here: .*{reason}"):
        assert Compiled(lambda value: value + 1, "a sum")(2) == 3
    assert Compiled(lambda value: value + 1, "a sum")(2) == 3  # silently from then on


class Known:
    """Stands in for the classifier that a command line names."""

    def __call__(self, arguments: object) -> torch.nn.Module:
        return load_embedded_classifier()


def test_the_command_compiles_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("fampe_fast.cli.model_and_methods.classifier_of", Known())
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    saved = tmp_path / "saved"
    words = ["warmup", "--steps", "1", "--samples", "2", "--compile", "on", "--save", str(saved)]
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"torch's", None))
    for _ in range(2):  # an earlier file of this kind is replaced
        assert main(words) == DONE
        assert "compiled" in capsys.readouterr().out
    assert saved.read_bytes() == content() + b"torch's"
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    assert main(words) == UNUSABLE
    assert "torch has compiled nothing that it can save" in capsys.readouterr().err
    (tmp_path / "theirs").touch()
    assert main([*words, "--save", str(tmp_path / "theirs")]) == UNUSABLE
    assert "was not written by fampe_fast" in capsys.readouterr().err
