"""The count of attempts on disk."""

from __future__ import annotations

from pathlib import Path

from fampe_fast.batch.attempts import begin, clear, take_back, unfinished
from fampe_fast.batch.storage import open_storage


def test_attempts_count_up_until_the_shard_is_finished(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    assert unfinished(storage) == {}
    assert [begin(storage, 7), begin(storage, 7), begin(storage, 1_234_567), begin(storage, 7)] == [1, 2, 1, 3]
    assert unfinished(storage) == {7: 3, 1_234_567: 1}
    clear(storage, 7)
    assert unfinished(storage) == {1_234_567: 1}
    assert begin(storage, 7) == 1


def test_an_attempt_that_ended_for_another_reason_does_not_count(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    begin(storage, 3)
    take_back(storage, 3, begin(storage, 3))
    assert begin(storage, 3) == 2


def test_no_mark_of_a_finished_shard_is_left_where_one_before_it_is_gone(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for shard in (4, 4, 5):
        begin(storage, shard)
    take_back(storage, 4, 1)
    clear(storage, 4)
    assert unfinished(storage) == {5: 1}
