"""Trainings over several seeds: known evidence is found, seeds are independent, and what is finished stays finished."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fampe_fast.catalog import TRAINING_DATA, TRAININGS
from fampe_fast.cli import DONE, UNUSABLE, main
from fampe_fast.images.generated import BANDS
from fampe_fast.robustness import OccludedFrequency
from fampe_fast.runs.defence_data import DATA, Split, texture_split
from fampe_fast.runs.defence_seed_results import OverSeeds, TaskResult
from fampe_fast.runs.defence_seeds import compare_trainings, stream_of
from fampe_fast.runs.defence_settings import DefenceSettings
from fampe_fast.runs.defence_training import band_attack, trained

from .forked import start

QUICK: dict[str, Any] = {
    "train_images": 12, "test_images": 4, "train_steps": 2, "batch_size": 4, "attack_steps": 1, "adversarial_steps": 1,
}  # fmt: skip
WORDS = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
FILES = ["trainings.json", "trainings.md", "trainings.png"]


def trials(out: Path) -> list[tuple[int, str]]:
    """Seed and training of each finished line."""
    path = out / "trainings.jsonl"
    lines = path.read_text().split("\n")[1:-1] if path.exists() else []
    found = [json.loads(line) for line in lines if '"settings"' not in line]
    return [(line["results"][0]["id"], line["part"]) for line in found]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def quick(out: Path, seeds: int = 3, **options: Any) -> dict[str, Any]:
    compare_trainings(out, seeds, ["textures"], **{**QUICK, **options})
    return json.loads((out / "trainings.json").read_text())["data"]["textures"]["trainings"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    quick(out)
    return out


# What is known --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("training", ["plain", "adversarial"])
def test_evidence_of_one_band_gives_a_reliance_curve_in_that_band(band: str, training: str) -> None:
    data, settings = DATA["textures"], DefenceSettings(train_images=192, test_images=64, train_steps=60, eps=2 / 255)
    split = texture_split(settings, [band])
    model = trained(training, data, split, settings)
    found = OccludedFrequency(model, data.rings)(split.test_images, split.test_labels, internal_batch_size=64)
    drops, edges = found.drops.double().mean(0), found.edges[0]
    low, high = BANDS[band]
    holds = (edges[:-1] < high) & (edges[1:] > low)
    assert float(drops[holds].sum()) > 0.05
    assert float(drops[~holds].abs().max()) < 0.25 * float(drops.max())
    task = TaskResult(settings, edges, drops={training: drops[None]})
    share = float(task.low_shares(training))
    assert share > 0.9 if band == "coarse" else share < 0.1


@pytest.mark.slow
def test_adversarial_training_resists_the_attack_that_fools_plain_training() -> None:
    pytest.importorskip("sklearn")
    data = DATA["digits"]
    settings = data.settings(train_steps=200, test_images=200, attack_steps=5)
    split = data.split(settings)
    kept = {}
    for training in ("plain", "adversarial"):
        model = trained(training, data, split, settings)
        assert not model.training
        attacked = band_attack(model, "all", settings)(split.test_images, split.test_labels).images
        with torch.no_grad():
            right = model(split.test_images).argmax(1) == split.test_labels
            still = right & (model(attacked).argmax(1) == split.test_labels)
        assert float(right.float().mean()) > 0.9
        kept[training] = float(still.float().mean())
    assert kept["adversarial"] > kept["plain"] + 0.2


def test_the_summary_of_known_numbers() -> None:
    settings = DefenceSettings(cutoff=12)
    edges = torch.tensor([0.0, 8, 16, 32], dtype=torch.float64)  # middles 4, 12, 24
    drops = {
        "plain": torch.tensor([[0.1, 0.1, 0.2], [0.2, 0.0, 0.2], [0.0, 0.5, 0.5]], dtype=torch.float64),
        "adversarial": torch.tensor([[0.3, 0.0, 0.1], [0.3, -0.2, 0.1], [0.2, 0.4, 0.2]], dtype=torch.float64),
    }
    accuracy = {name: [{"clean": c, "low": 0.5, "high": 0.5, "all": 0.0} for c in (0.8, 0.9, 1.0)] for name in drops}
    task = TaskResult(settings, edges, accuracy, drops)
    assert task.low_shares("plain").tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert task.low_shares("adversarial").tolist() == pytest.approx([0.75, 0.75, 0.75])
    found = task.low_share("adversarial", "plain")
    assert (found.mean, found.interval) == (pytest.approx(0.25), pytest.approx((0.25, 0.25)))
    clean = task.accuracies("plain")["clean"]
    # t = 4.302653 for two degrees of freedom; an accuracy does not pass 1
    assert clean.mean == pytest.approx(0.9)
    assert clean.interval == pytest.approx((0.9 - 4.302653 * 0.1 / 3**0.5, 1.0), rel=1e-6)
    assert task.rows()[1][-2:] == ["0.750 [0.750, 0.750]", "+0.250 [+0.250, +0.250]"]
    curve = task.curves()["plain"]
    assert curve.values.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert curve.interval is not None
    assert float(curve.interval[1, 0]) == pytest.approx(0.1 + 4.302653 * 0.1 / 3**0.5, rel=1e-6)


def test_a_curve_without_a_drop_has_no_share() -> None:
    edges, nothing = torch.tensor([0.0, 8, 32]), torch.tensor([[-0.1, 0.0], [0.2, 0.2], [0.1, 0.3]])
    found = TaskResult(DefenceSettings(), edges, drops={"plain": nothing.double()}).low_share("plain")
    assert found.values[1:] == pytest.approx((0.5, 0.25))
    assert (found.interval, found.text()) == (None, "")
    assert OverSeeds.of([0.5]).text() == "0.500"


# Data and seeds -------------------------------------------------------------------------------------------------------


def test_the_data_sets_are_those_that_the_command_offers() -> None:
    assert tuple(DATA) == TRAINING_DATA


@pytest.mark.parametrize("name", TRAINING_DATA)
def test_a_split_is_of_the_seed_and_holds_nothing_twice(name: str) -> None:
    if name == "digits":
        pytest.importorskip("sklearn")
    data = DATA[name]
    settings = data.settings(train_images=40, test_images=20, seed=5)
    split, again, other = (data.split(replace(settings, seed=seed)) for seed in (5, 5, 6))
    assert split.digest() == again.digest() != other.digest()
    assert (len(split.images), len(split.labels), len(split.test_images), len(split.test_labels)) == (40, 40, 20, 20)
    every = torch.cat([split.images, split.test_images])
    assert every.dtype == torch.float32
    assert 0 <= float(every.min()) < float(every.max()) <= 1
    assert len(every.flatten(1).unique(dim=0)) == 60
    assert set(split.labels.tolist()) <= set(range(len(data.classes)))
    model = trained("plain", data, split, replace(settings, train_steps=1))
    assert model(split.test_images).shape == (20, len(data.classes))


def test_a_digest_sees_images_and_labels() -> None:
    parts = [torch.zeros(2, 1, 8, 8), torch.zeros(2).long(), torch.zeros(1, 1, 8, 8), torch.zeros(1).long()]
    digests = {Split(*parts).digest()}
    for place in range(4):
        changed = [part.clone() for part in parts]
        changed[place].view(-1)[-1] += 1
        digests.add(Split(*changed).digest())
    assert len(digests) == 5


def test_seeds_have_no_images_and_no_weights_in_common() -> None:
    data, rows, weights = DATA["textures"], [], []
    for seed in range(4):
        settings = DefenceSettings(**{**QUICK, "seed": stream_of(seed), "train_steps": 1})
        split = data.split(settings)
        rows += [split.images, split.test_images]
        weights.append(trained("plain", data, split, settings).model.head.weight.detach())
    every = torch.cat(rows).flatten(1)
    assert len(every.unique(dim=0)) == len(every)
    assert len(torch.stack(weights).flatten(1).unique(dim=0)) == 4


@pytest.mark.slow
def test_a_seed_gives_the_same_alone_and_among_others(whole: Path, tmp_path: Path) -> None:
    """Seeds 1 to 3, in another folder, give what seeds 0 to 2 gave for 1 and 2."""
    first = json.loads((whole / "trainings.json").read_text())["data"]["textures"]["trainings"]
    later = quick(tmp_path, seed=1)
    assert list(first) == list(TRAININGS) == list(later)
    for name in TRAININGS:
        assert later[name]["drops"][:2] == first[name]["drops"][1:]
        assert len({tuple(row) for row in [*first[name]["drops"], later[name]["drops"][2]]}) == 4
        for attack in ("clean", "low", "high", "all"):
            assert later[name]["accuracy"][attack]["values"][:2] == first[name]["accuracy"][attack]["values"][1:]


@pytest.mark.slow
def test_equal_seeds_give_equal_files(whole: Path, tmp_path: Path) -> None:
    quick(tmp_path)
    assert contents(tmp_path) == contents(whole)


# Finished and not -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are ended by a signal")
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, errors = tmp_path / "out", tmp_path / "errors"
    arguments = ["defend", "--seeds", "3", "--data", "textures", "--out", str(out), *WORDS]
    process = start(arguments, errors)
    deadline = time.monotonic() + 240
    while len(trials(out)) < 3 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.is_alive(), errors.read_text()
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    before = (out / "trainings.jsonl").read_bytes()
    assert not any((out / name).exists() for name in FILES)
    finished = len(trials(out))
    assert main(arguments) == DONE
    captured = capsys.readouterr()
    assert f"{finished} of 12 classifiers were finished by an earlier run" in captured.err
    for word in ("textures, 3 seeds", "adversarial", "low share", "trainings.png"):
        assert word in captured.out
    assert (out / "trainings.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_a_finished_classifier_is_not_trained_again_and_more_seeds_add_to_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(tmp_path)
    names: list[str] = []
    original = trained

    def counted(name: str, *given: Any) -> Any:
        names.append(name)
        return original(name, *given)

    monkeypatch.setattr("fampe_fast.runs.defence_seeds.trained", counted)
    quick(tmp_path)
    assert (names, contents(tmp_path)) == ([], contents(whole))
    found = quick(tmp_path, seeds=4)
    assert names == list(TRAININGS)
    assert len(found["plain"]["drops"]) == 4

    def asked(*given: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr("fampe_fast.runs.defence_seeds.trained", asked)
    with pytest.raises(InterruptedError):  # other settings are other results
        quick(tmp_path, eps=0.1)


@pytest.mark.slow
def test_an_interrupt_loses_no_classifier(whole: Path, tmp_path: Path) -> None:
    done = []

    def interrupt(count: int) -> None:
        done.append(count)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_trainings(tmp_path, 3, ["textures"], on_trained=interrupt, **QUICK)
    assert len(trials(tmp_path)) == 5
    quick(tmp_path)
    assert contents(tmp_path) == contents(whole)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before any training."""

    def never(*given: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("fampe_fast.runs.defence_seeds.trained", never)
    monkeypatch.setattr("fampe_fast.runs.defend.trained", never)


@pytest.mark.usefixtures("untrained")
def test_digits_without_scikit_learn_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for data in ("digits", "textures,digits"):
        assert main(["defend", "--seeds", "3", "--data", data, "--out", str(tmp_path), *WORDS]) == UNUSABLE
        said = capsys.readouterr().err
        assert said == "fampe-fast: scikit-learn is needed for the digits: pip install 'fampe_fast[digits]'\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "2"], "seeds must be at least 3, got 2"),
        (["--data", "digits"], "--data needs --seeds, whose data sets it chooses"),
        (["--seeds", "3", "--cutoff", "0"], "cutoff must be above 0, got 0"),
        (["--seeds", "3", "--adversarial-steps", "0"], "adversarial_steps must be at least 1, got 0"),
        (
            ["--seeds", "3", "--data", "textures,digits", "--train-images", "1700"],
            "train_images and test_images must be at most 1797 digits together, got 2200",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if "textures,digits" in words:
        pytest.importorskip("sklearn")
    assert main(["defend", "--out", str(tmp_path), *words]) == UNUSABLE
    assert capsys.readouterr().err.startswith(f"fampe-fast: {said}")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("untrained")
def test_a_file_of_another_hand_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "trainings.md").write_text("mine")
    with pytest.raises(ValueError, match=r"trainings\.md exists already and was not written by"):
        compare_trainings(tmp_path, 3, ["textures"], **QUICK)
    for names, said in (([], "data must be one or more of digits, textures; got none"), (["x"], "data must be one")):
        with pytest.raises(ValueError, match=said):
            compare_trainings(tmp_path / "other", 3, names)
