from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.end_to_end import cold_start


@pytest.mark.slow
def test_every_part_of_every_start_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")  # a compiler's seconds are not what is asked
    real, found, caches = cold_start.start, {}, {False: [], True: []}

    def once(arguments: Any, compiled: str, warm: bool, folder: Path) -> dict[str, object]:
        """A process for each way of starting; the other one of the pair, with filled caches, takes its seconds over."""
        caches[warm].append(folder)
        if warm not in found:
            found[warm] = real(arguments, compiled, warm, folder)
        return dict(found[warm])

    monkeypatch.setattr(cold_start, "start", once)
    sizes = ["--steps", "1", "--samples", "1", "--repetitions", "1", "--threads", "1", "--device", "cpu"]
    assert cold_start.main(["--model", "embedded", *sizes, "--out", str(tmp_path)]) == 0
    assert [folders[0] == folders[1] for folders in caches.values()] == [True, True]
    assert caches[False] != caches[True]
    rows = json.loads((tmp_path / "cold_start.json").read_text())["rows"]
    assert {(row["cached"], row["warmup"]) for row in rows} == {(a, b) for a in (False, True) for b in (False, True)}
    for row in rows:
        assert tuple(row["seconds"]) == cold_start.PARTS
        assert all(value >= 0 for found in row["seconds"].values() for value in found)
    assert "| off | empty | yes |" in (tmp_path / "cold_start.md").read_text()


@pytest.mark.slow
def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown model"):
        cold_start.main(["--model", "no_such_model", "--repetitions", "1", "--out", str(tmp_path)])
