"""The worker: what it finds, what an image costs that cannot be read or explained, and what a small memory does."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fampe_fast.answers import explainer
from fampe_fast.answers.explainer import MapShapeError
from fampe_fast.answers.pixels import batch_of
from fampe_fast.answers.result import RowError, scaled_map
from fampe_fast.batch import image_bytes
from fampe_fast.batch.decoding import Decoder, Decoders, _of_death
from fampe_fast.batch.failures import TransientError
from fampe_fast.batch.plan import Row, read_back, read_rows
from fampe_fast.batch.planning import method_of
from fampe_fast.batch.reading import read_maps
from fampe_fast.batch.retry import Retry
from fampe_fast.batch.shards import shard_metadata
from fampe_fast.batch.storage import Storage
from fampe_fast.batch.worker import ShardReport, Worker
from fampe_fast.images import read_image
from fampe_fast.models.classifier import Classifier
from fampe_fast.runtime.model_probe import probabilities_of

from . import small_runs
from .small_runs import a_classifier, digest_of, draw, draw_with_errors, planned

pytest.importorskip("pyarrow")


def made(storage: Storage, classifier: Classifier | None = None, shards: list[int] | None = None) -> list[ShardReport]:
    found = Worker(storage, classifier=classifier or a_classifier(), processes=0)
    try:
        return list(found.work(range(found.plan.shards) if shards is None else shards))
    finally:
        found.close()


@pytest.fixture(autouse=True)
def small_pauses_and_all_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_runs, "most_images", 10**9)
    monkeypatch.setattr(image_bytes, "Retry", lambda: Retry(2, 0.0))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_maps_are_the_methods(tmp_path: Path, dtype: str) -> None:
    folder, classifier = draw(tmp_path / "images", 6), a_classifier()
    storage = planned(tmp_path / "out", folder, classifier, map_dtype=dtype, overlay=True)
    made(storage, classifier)
    plan = read_back(storage)
    assert plan.shape == (1, 24, 24)
    method = method_of(plan, classifier)
    paths = sorted(folder.iterdir())
    first, second = read_maps(storage.address)
    for part, numbers in ((first, [0, 1, 2, 3]), (second, [4, 5])):
        images = torch.stack([classifier.transform(read_image(paths[k])) for k in numbers])
        maps, details = method.attribute(images, image_ids=numbers, internal_batch_size=4, return_details=True)
        expected = maps[:, :1].numpy()
        if dtype == "float16":
            stored = [scaled_map(one, "float16") for one in expected]
            expected = np.stack([one.astype(np.float32) * np.float32(scale) for one, scale in stored])
        np.testing.assert_array_equal(part["map"], expected)
        probabilities = probabilities_of(classifier, images)
        assert part["image_id"].tolist() == numbers
        assert part["uri"].tolist() == [str(paths[k]) for k in numbers]
        assert part["target"].tolist() == part["predicted"].tolist() == probabilities.argmax(1).tolist()
        np.testing.assert_allclose(part["probability"], probabilities.amax(1), rtol=1e-6)
        np.testing.assert_array_equal(part["cutoff"], details.cutoff.numpy())
        assert set(part["passes"].tolist()) == {method.passes}
        assert part["class"].tolist() == [f"class {target}" for target in part["target"]]
        with Image.open(io.BytesIO(part["overlay"][0])) as picture:
            assert picture.size == (24, 24)


def test_targets_of_the_plan_are_explained(tmp_path: Path) -> None:
    storage = planned(tmp_path / "out", draw(tmp_path / "images", 2), a_classifier())
    plan = read_back(storage)
    rows = [row._replace(target=target) for row, target in zip(read_rows(storage, plan, 0), (3, None), strict=True)]
    found = Worker(storage, classifier=a_classifier(), processes=0)
    images = Decoder.of(plan, found._classifier.transform)(rows)
    answers = found._explain(rows, images, 4)
    assert not isinstance(answers[0], RowError)
    assert not isinstance(answers[1], RowError)
    assert (answers[0].target, answers[1].target) == (3, answers[1].predicted)
    # One that is no class costs its row alone.
    answers = found._explain([rows[0]._replace(target=5), rows[1]], images, 4)
    found.close()
    assert answers[0] == RowError("ValueError: the target 5 is out of range: the model has 5 classes", "permanent")
    assert not isinstance(answers[1], RowError)


def test_what_cannot_be_read_or_explained_is_a_row_that_says_so(tmp_path: Path) -> None:
    storage = planned(tmp_path / "out", draw_with_errors(tmp_path / "images", 10), a_classifier())
    reports = made(storage)
    assert [(report.rows, report.errors, report.transient) for report in reports] == [(4, 1, 0), (4, 2, 0), (2, 1, 0)]
    parts = list(read_maps(storage.address))
    errors = {int(i): e for part in parts for i, e in zip(part["image_id"], part["error"], strict=True) if e}
    assert errors == {
        2: "the file is empty (0 bytes)",
        5: "not an image in a format that Pillow reads (the file begins with b'hello')",
        6: "the image is truncated (image file is truncated)",
        9: "ValueError: the model refuses white images",
    }
    assert all(kind in (None, "permanent") for part in parts for kind in part["error_kind"])


def test_a_bad_image_changes_no_other_row(tmp_path: Path) -> None:
    """Every image keeps its batch and its place in it, whatever becomes of those beside it."""
    whole = planned(tmp_path / "whole", draw(tmp_path / "good", 8), a_classifier())
    holes = planned(tmp_path / "holes", draw(tmp_path / "bad", 8), a_classifier())
    for name in ("000.png", "002.png", "003.png"):
        (tmp_path / "bad" / name).write_bytes(b"")
    made(whole)
    made(holes)
    for good, bad in zip(read_maps(whole.address), read_maps(holes.address), strict=True):
        there = [error is None for error in bad["error"]]
        np.testing.assert_array_equal(good["map"][there], bad["map"][there])
        np.testing.assert_array_equal(good["probability"][there], bad["probability"][there])


@pytest.mark.slow
def test_the_order_of_the_shards_and_who_makes_them_do_not_matter(tmp_path: Path) -> None:
    folder = draw_with_errors(tmp_path / "images", 18)
    one = planned(tmp_path / "one", folder, a_classifier())
    other = planned(tmp_path / "other", folder, a_classifier())
    made(one)
    made(other, shards=[3, 0])
    found = Worker(other, classifier=a_classifier(), processes=0)
    for shard in (4, 1, 2):
        assert found(shard).shard == shard
    found.close()
    assert digest_of(one) == digest_of(other)


# Errors that may pass -------------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> list[str]:
    """Have reading one image fail so many times."""
    read, asked = image_bytes._read, []

    def _read(row: Row, max_bytes: int) -> bytes:
        if row.uri.endswith(name):
            asked.append(row.uri)
            if len(asked) <= times:
                raise TransientError("cannot be read: the store is away")
        return read(row, max_bytes)

    monkeypatch.setattr(image_bytes, "_read", _read)
    return asked


def test_an_error_that_passes_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw(tmp_path / "images", 8)
    undisturbed = planned(tmp_path / "undisturbed", folder, a_classifier())
    made(undisturbed)
    storage = planned(tmp_path / "out", folder, a_classifier())
    asked = failing(monkeypatch, "005.png", 1)
    made(storage)
    assert len(asked) == 2
    assert digest_of(storage) == digest_of(undisturbed)


def test_an_error_that_stays_long_enough_is_a_row_that_may_be_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = planned(tmp_path / "out", draw(tmp_path / "images", 4), a_classifier())
    failing(monkeypatch, "001.png", 2)
    (report,) = made(storage)
    assert (report.errors, report.transient) == (1, 1)
    assert shard_metadata(storage, 0)["transient"] == 1
    (part,) = read_maps(storage.address, columns=["error", "error_kind"])
    assert part["error"][1] == "cannot be read: the store is away"
    assert part["error_kind"].tolist() == [None, "transient", None, None]


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_shard_that_does_not_fit_is_made_again_from_its_start_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw(tmp_path / "images", 8)
    small = planned(tmp_path / "small", folder, a_classifier(), internal_batch_size=2)
    storage = planned(tmp_path / "out", folder, a_classifier(), rows_per_shard=8)
    made(small)
    calls = []
    explain = explainer.explain_batch

    def explained(*args: object, **options: object) -> object:
        calls.append(options["internal_batch_size"])
        # The memory is full from the second batch on.
        monkeypatch.setattr(small_runs, "most_images", 2 if len(calls) > 1 else 10**9)
        return explain(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(explainer, "explain_batch", explained)
    (report,) = made(storage)
    assert calls == [4, 4, 2, 2]
    assert report.chunk == shard_metadata(storage, 0)["chunk"] == 2
    (part,) = read_maps(storage.address)
    np.testing.assert_array_equal(part["map"], np.concatenate([one["map"] for one in read_maps(small.address)]))


@pytest.mark.slow
def test_what_does_not_fit_one_by_one_is_a_row_that_may_be_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = planned(tmp_path / "out", draw(tmp_path / "images", 4), a_classifier())
    found = Worker(storage, classifier=a_classifier(), processes=0)
    monkeypatch.setattr(small_runs, "most_images", 0)
    report = found(0)
    assert (report.errors, report.transient, report.chunk) == (4, 4, 1)
    monkeypatch.setattr(small_runs, "most_images", 10**9)
    report = found(0)
    found.close()
    assert (report.errors, report.chunk) == (0, 4)


# What ends a run ------------------------------------------------------------------------------------------------------


def test_another_model_than_the_plans_is_refused(tmp_path: Path) -> None:
    storage = planned(tmp_path / "out", draw(tmp_path / "images", 1), a_classifier())
    other = a_classifier()
    with torch.no_grad():
        other.model.head.bias += 1
    with pytest.raises(ValueError, match=r"fragile has the fingerprint [0-9a-f]{16} in the plan, and .* now"):
        Worker(storage, classifier=other)
    with pytest.raises(ValueError, match=r"the plan is for the device 'cpu', got 'cuda:1'"):
        Worker(storage, device="cuda:1", classifier=a_classifier())


def test_maps_that_the_plan_does_not_know_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = planned(tmp_path / "out", draw(tmp_path / "images", 2), a_classifier())
    explain = explainer.explain_batch

    def uneven(*args: object, **options: object) -> object:
        found = explain(*args, **options)  # type: ignore[arg-type]
        found.maps[1, 2, 3, 4] += 1
        return found

    monkeypatch.setattr(explainer, "explain_batch", uneven)
    with pytest.raises(MapShapeError, match="were to have equal channels, and they differ"):
        made(storage)
    assert list(storage.names("maps")) == []


def test_a_device_that_is_lost_ends_the_run_and_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = planned(tmp_path / "out", draw(tmp_path / "images", 2), a_classifier())

    def lost(*args: object, **options: object) -> object:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(explainer, "explain_batch", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        made(storage)
    assert list(storage.names("maps")) == []
    assert list(storage.names("attempts")) == ["attempts/000000-1"]


@pytest.mark.parametrize("images", [1, 2])
def test_a_machine_that_can_explain_nothing_ends_the_run_and_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    """Triton without a C compiler, for example: no image is to be blamed for it."""
    storage = planned(tmp_path / "out", draw(tmp_path / "images", images), a_classifier())

    def fails(*args: object, **options: object) -> object:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    with monkeypatch.context() as patch:
        patch.setattr(explainer, "explain_batch", fails)
        words = "no image can be explained here: RuntimeError: Failed to find C compiler"
        with pytest.raises(explainer.MethodFailedError, match=f"^{words}"):
            made(storage)
        assert list(storage.names("maps")) == []
    (report,) = made(storage)  # where it works
    assert (report.rows, report.errors) == (images, 0)


# Decoders -------------------------------------------------------------------------------------------------------------


def test_pixels_travel_as_bytes_where_bytes_hold_them(tmp_path: Path) -> None:
    folder, classifier = draw(tmp_path / "images", 1), a_classifier()
    image = read_image(folder / "000.png")
    row = Row(0, 0, str(folder / "000.png"))
    (whole,) = Decoder(classifier.transform, 10**6, 10**6)([row])
    (fine,) = Decoder(_Finer(classifier), 10**6, 10**6)([row])
    assert not isinstance(whole, RowError)
    assert not isinstance(fine, RowError)
    assert (whole.dtype, fine.dtype) == (np.uint8, np.float32)
    assert torch.equal(batch_of([whole], torch.device("cpu"))[0], classifier.transform(image))
    mixed = batch_of([whole, fine], torch.device("cpu"))
    assert torch.equal(mixed[0], classifier.transform(image))
    assert torch.equal(mixed[1], _Finer(classifier)(image))


class _Finer:
    def __init__(self, classifier: Classifier) -> None:
        self.transform = classifier.transform

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.transform(image) * 0.999


def test_a_transform_that_cannot_be_sent_is_used_here(tmp_path: Path) -> None:
    from fampe_fast.errors import FampeWarning

    decoder = Decoder(lambda image: torch.zeros(3, 8, 8), 10**6, 10**6)
    with pytest.warns(FampeWarning, match="cannot be sent to decoding processes"):
        assert Decoders(decoder, 2).processes == 0


def test_what_a_decoder_died_of_decides_whether_it_is_tried_again() -> None:
    assert _of_death(-11) == RowError("the decoder died, signal 11", "permanent")
    assert _of_death(3) == RowError("the decoder died, exit code 3", "permanent")
    assert _of_death(-9).kind == "transient"
