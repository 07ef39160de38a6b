"""What ``torch.compile`` has made, carried to another process in a file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ROOT
from fampe_fast.cli import DONE, UNUSABLE, main
from fampe_fast.errors import FampeWarning
from fampe_fast.files import mark_of
from fampe_fast.methods.warmup import WarmUp
from fampe_fast.models.embedded import load_embedded_classifier
from fampe_fast.ops.backends import _compiler_obstacle
from fampe_fast.runtime import compile_cache
from fampe_fast.runtime.chunking import are_pinned
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
save_compile_cache(Path(sys.argv[1]))
found = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}
print(json.dumps({**found, "graphs": torch.compiler.save_cache_artifacts()[1].inductor_artifacts}))
"""


def compiled_in_a_process(caches: Path, saved: Path, **environment: str) -> dict[str, Any]:
    """Compile a layer with torch's caches in this folder, and save them; count what torch found and list the graphs."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(saved)],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(caches), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(_compiler_obstacle("cpu") is not None, reason="no C++ compiler here")
def test_another_process_finds_what_was_saved(tmp_path: Path) -> None:
    saved, again, caches = tmp_path / "saved", tmp_path / "again", tmp_path / "caches"
    made = compiled_in_a_process(caches, saved)
    assert (made["hit"], made["miss"], len(made["graphs"])) == (0, 1, 1)
    assert (caches / "fxgraph").is_dir()
    assert mark_of(saved).kind == "compile cache"
    # But for the graphs: a C++ compiler need not translate the same program again.
    others = shutil.copytree(caches, tmp_path / "others", ignore=shutil.ignore_patterns("fxgraph", "aotautograd"))
    found = compiled_in_a_process(others, again, FAMPE_FAST_COMPILE_CACHE=str(saved))
    assert found == {"hit": 1, "miss": 0, "graphs": made["graphs"]}  # what was loaded is saved again
    assert mark_of(again).kind == "compile cache"


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


def test_code_that_is_saved_is_that_of_runs_that_record_their_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The workers of ``batch`` load it, which compile without CUDA graphs whatever a measurement favours."""
    pinned: list[bool] = []

    def warmed_up(method: object, **sizes: object) -> WarmUp:
        pinned.append(are_pinned())
        return WarmUp(1, (), 1, 0.5, decisions=("CUDA graphs: not used for anything",))

    monkeypatch.setattr("fampe_fast.cli.model_and_methods.classifier_of", Known())
    monkeypatch.setattr("fampe_fast.methods.warmup.warmup", warmed_up)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"torch's", None))
    for words in ([], ["--save", str(tmp_path / "saved")]):
        assert main(["warmup", "--passes", "1", *words]) == DONE
        assert capsys.readouterr().out == "compiled 1 graph in 0.5 s\nCUDA graphs: not used for anything\n"
    assert pinned == [False, True]
    assert not are_pinned()
