from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.end_to_end import cold_start


def test_every_part_of_every_start_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = ["--steps", "1", "--samples", "1", "--repetitions", "1", "--threads", "1", "--device", "cpu"]
    assert cold_start.main(["--model", "embedded", *sizes, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "cold_start.json").read_text())["rows"]
    assert {(row["cached"], row["warmup"]) for row in rows} == {(a, b) for a in (False, True) for b in (False, True)}
    for row in rows:
        assert tuple(row["seconds"]) == cold_start.PARTS
        assert all(value >= 0 for found in row["seconds"].values() for value in found)
    assert "| off | empty | yes |" in (tmp_path / "cold_start.md").read_text()


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown model"):
        cold_start.main(["--model", "no_such_model", "--repetitions", "1", "--out", str(tmp_path)])
