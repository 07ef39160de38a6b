"""Groups of images: how long they are held."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from fampe_fast.models.embedded import load_embedded_classifier
from fampe_fast.runs.batches import Failure, Group, Item, groups_of, one_by_one_on_error, settle_all


def test_one_group_s_images_are_held_at_a_time(tmp_path: Path) -> None:
    """A run over a large folder would fill the device otherwise."""
    paths = [tmp_path / f"{k}.png" for k in range(7)]
    for k, path in enumerate(paths):
        Image.new("RGB", (20, 20), (k, 0, 0)).save(path)
    groups: list[Group] = []
    finished: list[int] = []

    def settle(group: Group) -> None:
        groups.append(group)
        assert group.batch() is not None
        assert sum(one._batch is not None for one in groups) == 1

    def finish(items: list[Item], earlier: int) -> None:
        finished.extend(item.position for item in items)

    every = groups_of(load_embedded_classifier(), paths, None, 2, lambda failure: None, list(range(7)))
    settle_all(every, lambda item: True, settle, finish)
    assert len(groups) == 4
    assert finished == list(range(7))
    assert all(group._batch is None for group in groups)
    assert groups[0].batch() is not None  # read again where it is asked for


def test_a_lost_device_is_no_image_s_fault(tmp_path: Path) -> None:
    import pytest

    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    (group,) = groups_of(load_embedded_classifier(), paths, None, 2, lambda failure: None, [0, 1])
    batch = group.batch()
    assert batch is not None
    failures: list[Failure] = []

    def lost(batch: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(one_by_one_on_error(batch, lost, failures.append))
    assert failures == []

    def fails(batch: object) -> None:
        raise RuntimeError("of this image")

    assert list(one_by_one_on_error(batch, fails, failures.append)) == []
    assert [failure.path for failure in failures] == paths
    assert torch.equal(batch.images, group.batch().images)  # type: ignore[union-attr]
