"""The flags that are made of the code's options."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from fampe_fast import FAMPEConfig, create_method
from fampe_fast.catalog import GRADIENTS, METRICS, PLAIN_METHODS, load, method_options, metric_options
from fampe_fast.cli import UNUSABLE, main
from fampe_fast.cli.flags import add_flag, flag_of, given
from fampe_fast.cli.parser import make_parser, parse
from fampe_fast.options import Option
from fampe_fast.runs.attack_results import attack_config

from ..models_for_tests import Smooth

ROOT = Path(__file__).parents[2]


def parser_of(command: str) -> argparse.ArgumentParser:
    (commands,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices[command]


def help_of(command: str) -> str:
    return " ".join(parser_of(command).format_help().split())


COMMANDS = [
    "demo", "explain", "batch", "verify", "export", "serve", "evaluate", "tune", "calibrate", "study", "frequency",
    "occlude", "spectra", "gradients", "attack", "defend", "warmup", "doctor",
]  # fmt: skip


def flags_of(command: str) -> set[str]:
    return {flag for action in parser_of(command)._actions for flag in action.option_strings}


# One for every field --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["explain", "evaluate", "tune"])
def test_every_field_of_every_configuration_has_a_flag(command: str) -> None:
    known = flags_of(command)
    for name, row in PLAIN_METHODS.items():
        made: Any = load(row.options)
        names = {field.name for field in fields(made)} if is_dataclass(made) else set(row.only or ())
        assert names
        names |= {*row.split, *row.own}
        assert {option.name for option in method_options(name)} == names
        assert {flag_of(option) for option in names} <= known
    assert ("--map-cutoff" in known) == (command != "tune")


def test_every_option_of_a_metric_has_a_flag_with_the_metrics_name() -> None:
    known = flags_of("evaluate")
    for row in METRICS.values():
        assert {flag_of(name if name in row.unprefixed else row.prefix + name) for name in row.only} <= known
    assert {"--protocol", "--metric-steps", "--mu-fidelity-samples", "--stability-radius"} <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_says_what_it_is(command: str) -> None:
    for action in parser_of(command)._actions:
        said = action.help or ""
        assert len(said) > 8, action.option_strings
        assert not re.match(r"(of|that|in|for|with) ", said), (action.option_strings, said)  # no half sentences
        assert "``" not in said
        assert "--option" not in action.option_strings


@pytest.mark.slow
def test_the_defaults_that_are_shown_are_the_methods_own() -> None:
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    for name in PLAIN_METHODS:
        method: Any = create_method(name, Smooth())
        holder = getattr(method, "config", method)
        for option in method_options(name):
            if option.name == "absolute" and option.default is None:  # each method's own, and said so
                assert "(default: the method's own" in help_of("explain")
            elif option.name in PLAIN_METHODS[name].split:  # not given, the fields that it is split over hold
                assert option.default is None
                assert getattr(holder, option.name) == FAMPEConfig().passes == 1
            elif option.name in PLAIN_METHODS[name].own:  # read by the method itself, which keeps none of it
                assert option.default is None
            else:
                assert getattr(holder, option.name) == option.default, (name, option.name)
    for text in (
        "default: 16/255",
        "default: 6; fampe_published, attexplore, integrated_gradients",
        "default: off; fampe_published",
    ):
        assert text in help_of("explain")


@pytest.mark.parametrize("gradients", GRADIENTS)
def test_the_defaults_that_are_shown_are_the_attack_s_own(gradients: str) -> None:
    from fampe_fast.catalog import gradient_options

    config = attack_config(gradients)
    for option in gradient_options(gradients):
        assert getattr(config, option.name) == option.default, option.name
    assert "(default: 1; fampe, attexplore: 20)" in help_of("attack")
    assert not {"--passes", "--views", "--layers"} & flags_of("attack")  # which are of maps


def test_values_are_read_as_what_they_are() -> None:
    line = "explain x --eps 8/255 --area-cutoff none --cutoff 12 --no-smoothing --input-diversity --bounds=-1,2"
    line += " --steps 3 --mode mix --map-cutoff 9"
    found = given(parse(line.split()), "method")
    assert found == {
        "eps": 8 / 255, "area_cutoff": None, "cutoff": 12.0, "smoothing": False, "input_diversity": True,
        "bounds": (-1.0, 2.0), "steps": 3, "mode": "mix", "map_cutoff": 9.0,
    }  # fmt: skip
    assert given(parse(["explain", "x"]), "method") == {}
    line = "evaluate x --metric mu_fidelity,stability --mu-fidelity-grid-size none --no-stability-normalise --seed 3"
    arguments = parse(line.split())
    assert given(arguments, "metric mu_fidelity") == {"grid_size": None}
    assert given(arguments, "metric stability") == {"normalise": False}
    assert given(arguments, "method") == {"seed": 3}


@pytest.mark.parametrize(
    ("option", "typed", "value", "refused"),
    [
        (Option("size", "int", (), True, 9, ""), "none", None, "2.5"),
        (Option("size", "int", (), False, 9, ""), "4", 4, "none"),
        (Option("share", "float", (), True, 0.5, ""), "1/4", 0.25, "a"),
        (Option("kind", "choice", ("a", "b"), True, None, ""), "none", None, "c"),
        (Option("kind", "choice", ("a", "b"), False, "a", ""), "b", "b", "none"),
        (Option("range", "pair", (), True, None, ""), "0,8/255", (0, 8 / 255), "1,2,3"),
        (Option("place", "str", (), False, "x", ""), "none", "none", None),
    ],
)
def test_none_is_a_value_where_it_may_be_one(option: Option, typed: str, value: object, refused: str | None) -> None:
    parser = argparse.ArgumentParser()
    add_flag(parser, "it", option)
    assert given(parser.parse_args([f"--{option.name}", typed]), "it") == {option.name: value}
    assert given(parser.parse_args([]), "it") == {}
    if refused is not None:
        with pytest.raises(SystemExit):
            parser.parse_args([f"--{option.name}", refused])


def test_every_option_of_a_metric_can_be_read() -> None:
    for metric in METRICS:
        assert {option.name for option in metric_options(metric)} == set(METRICS[metric].only)


# Who has which --------------------------------------------------------------------------------------------------------


def test_an_option_goes_to_the_methods_that_have_it() -> None:
    from fampe_fast.cli.model_and_methods import options_by_method

    arguments = parse(["evaluate", "x", "--alpha", "0.3", "--seed", "4", "--passes", "7", "--map-cutoff", "9"])
    names = ["fampe", "attexplore", "smoothgrad", "forgrad_saliency"]
    assert options_by_method(arguments, names) == {
        "fampe": {"alpha": 0.3, "seed": 4, "passes": 7},
        "attexplore": {"seed": 4},
        "smoothgrad": {"seed": 4, "passes": 7},
        "forgrad_saliency": {"map_cutoff": 9.0},
    }
    with pytest.raises(ValueError, match=r"attexplore: no such option\(s\): --alpha, --passes, --map-cutoff; known"):
        options_by_method(arguments, ["attexplore"])


def test_options_of_depths_go_to_the_methods_that_look_at_depths() -> None:
    from fampe_fast.cli.model_and_methods import options_by_method

    names, given = ["fampe", "attexplore", "fampe_published"], {"gate_floor": 0.5, "layers": "a"}
    words = ["evaluate", "x", "--gate-floor", "0.5", "--layers", "a"]
    assert options_by_method(parse(words), names) == {"fampe": given, "attexplore": {}, "fampe_published": {}}
    found = options_by_method(parse([*words, "--views", "1"]), names)
    assert found == {name: {**given, "views": 1} for name in names}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("explain {photo} --alpha 2", "alpha must be in [0, 1], got 2.0"),
        ("explain {photo} --method fampe,saliency --tau 0", "tau must be in (0, 1], got 0.0"),
        ("explain {photo} --method forgrad_fampe --map-cutoff=-1", "map_cutoff must be"),
        ("explain {photo} --eps 1e-9", "eps must be at least"),
        ("explain {photo} --method attexplore --alpha 0.5", "no such option(s): --alpha"),
        ("evaluate {folder} --rho 2", "rho must be in [0, 1], got 2.0"),
        ("tune {folder} --steps=-1", "steps must be at least 0, got -1"),
        (
            "tune {folder} --steps 0 --views 0",
            "steps and views are both 0, but a map needs a path (steps=5) or a view of the image (views=1)",
        ),
        ("explain {photo} --method attexplore --steps 0", "steps and views are both 0"),
        ("explain {photo} --passes 0", "passes must be at least 1, got 0"),
        ("explain {photo} --views 0 --steps 1 --layers a", "give views=1 or 2, or leave out layers"),
        ("explain {photo} --method attexplore --gate-floor 1", "give views=1 or 2, or leave out gate_floor"),
        ("explain {photo} --views 3", "views must be 0, 1 (the image) or 2 (its mirror image as well), got 3"),
        ("attack {folder} --gradients fampe --steps 0", "steps must be at least 1, got 0"),
        ("study alpha {folder} --gain 0", "gain must be in (0, "),
        ("study alpha {folder} --gate-floor 1", "no variant of the study 'alpha' has views: give views=1"),
        ("occlude {folder} --bands 0", "bands must be at least 1, got 0"),
        ("attack {folder} --gradients fampe --sigma=-1", "sigma must be in [0, "),
    ],
)
def test_a_wrong_value_is_refused_before_the_model_is_loaded(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fampe_fast.cli.model_and_methods.load_classifier", loaded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"never read")
    assert main(line.format(photo="photo.png", folder=tmp_path).split()) == UNUSABLE
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
