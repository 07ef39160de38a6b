"""The benchmark of one-pass maps, walked at toy sizes: complete, and nothing said of speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.end_to_end import one_pass

pytest.importorskip("pytorch_grad_cam")


def test_a_dry_run_measures_every_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert one_pass.main(["--dry-run", "--no-memory", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("one_pass_*.json")
    rows = json.loads(file.read_text())["rows"]
    assert [(row["batch"], row["way"]) for row in rows] == [(batch, way) for batch in (1, 2) for way in one_pass.WAYS]
    assert all(row["ms"]["median"] > 0 for row in rows)
    assert all(row["against"]["median"] == 1 for row in rows if row["way"] == one_pass.GRAD_CAM)
    said = capsys.readouterr().out
    assert "dry run" in said.lower()
    assert one_pass.GRAD_CAM in said


@pytest.mark.slow
def test_a_way_s_peak_memory_is_measured_in_a_process_of_its_own() -> None:
    options = {"precision": "fp32", "compile": "off"}
    peak = one_pass._peak_elsewhere("embedded", 2, one_pass.FAMPE_1, torch.device("cpu"), options)
    assert peak is not None
    assert peak >= 0
