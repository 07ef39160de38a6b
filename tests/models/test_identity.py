"""What tells one classifier from another: all that its answers depend on, and nothing else."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fampe_fast.models import Classifier, load_classifier, load_embedded_classifier
from fampe_fast.models.identity import identity_of


def small(
    *, padding: int = 1, mean: float = 0.5, size: int = 32, last: float = 0.0, name: str = "small", crop: object = None
) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].weight.data[-1, -1, -1, -1] += last
    return Classifier(model.eval(), name=name, mean=mean, input_size=size, transform=crop)


def fingerprint(classifier: Classifier) -> object:
    return identity_of(classifier)["fingerprint"]


def test_it_is_the_same_for_the_same_model() -> None:
    assert identity_of(small()) == identity_of(small())
    assert identity_of(small())["model"] == "small"
    assert fingerprint(small()) == fingerprint(small().to(memory_format=torch.channels_last))
    # A function shows its address, which is another in every process.
    assert fingerprint(small(crop=partial(print))) == fingerprint(small(crop=partial(print)))


@pytest.mark.parametrize(
    "other",
    [
        partial(small, padding=0),  # the same weights
        partial(small, mean=0.4),
        partial(small, size=48),
        partial(small, last=1e-6),
        partial(small, crop=partial(print)),
        lambda: small().half(),
    ],
    ids=["padding", "mean", "size", "one weight", "transform", "precision"],
)
def test_it_is_another_for_whatever_changes_an_answer(other: Callable[[], Classifier]) -> None:
    assert fingerprint(other()) != fingerprint(small())


def _saved(path: Path, kind: str, last: float) -> Path:
    model = small(last=last).model
    if kind == "exported":
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (torch.rand(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
        torch.export.save(program, str(path))
    else:
        script = torch.jit.trace(model, torch.rand(2, 3, 32, 32)) if kind == "traced" else torch.jit.script(model)
        (torch.jit.freeze(script) if kind == "frozen" else script).save(str(path))
    return path


@pytest.mark.parametrize(("kind", "ending"), [("traced", ".pt"), ("frozen", ".pt"), ("exported", ".pt2")])
def test_programs_are_told_apart_by_their_code_and_constants(kind: str, ending: str, tmp_path: Path) -> None:
    """A frozen program has no parameters: its weights are constants of its code."""
    one, same, other = (
        _saved(tmp_path / name / f"model{ending}", kind, last)
        for name, last in (("one", 0.0), ("same", 0.0), ("other", 1e-3))
        if (tmp_path / name).mkdir() is None
    )
    first = fingerprint(load_classifier(one, input_size=32))
    assert fingerprint(load_classifier(one, input_size=32)) == first  # however often it is loaded
    assert fingerprint(load_classifier(same, input_size=32)) == first
    assert fingerprint(load_classifier(other, input_size=32)) != first


def test_programs_of_the_same_weights_and_other_code_are_told_apart() -> None:
    class Scaled(nn.Module):
        def __init__(self, plus: bool) -> None:
            super().__init__()
            self.plus = plus

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            means = pixels.mean((2, 3))
            return means + 1 if self.plus else means - 1

    found = {
        fingerprint(Classifier(torch.jit.trace(Scaled(plus), torch.rand(1, 3, 8, 8)), name="s", input_size=8))
        for plus in (True, False)
    }
    assert len(found) == 2


def test_buffers_that_no_checkpoint_holds_count() -> None:
    def scaled(by: float) -> Classifier:
        classifier = small()
        classifier.model.register_buffer("scale", torch.tensor(by), persistent=False)
        return classifier

    assert fingerprint(scaled(1.0)) == fingerprint(scaled(1.0))
    assert fingerprint(scaled(1.0)) != fingerprint(scaled(2.0))


@pytest.mark.slow
def test_it_is_the_same_in_every_process() -> None:
    script = (
        "from fampe_fast.models import load_embedded_classifier\n"
        "from fampe_fast.models.identity import identity_of\n"
        "print(identity_of(load_embedded_classifier())['fingerprint'])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == fingerprint(load_embedded_classifier())


LOG = logging.getLogger("mine")


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*body, nn.Linear(4, 5)).eval()


class Own(nn.Module):
    """Somebody's class, with settings that repr does not show."""

    def __init__(self, factor: float = 1.0, *, table: object = None) -> None:
        nn.Module.__init__(self)  # also of the class in `other_code`
        self.net, self.factor, self.table = network(), factor, table
        self.log, self.device, self.bend = LOG, torch.device("cpu"), lambda x: x * factor

    def forward(self, images: Tensor) -> Tensor:
        LOG.debug("a global that belongs to the process")
        return self.bend(self.net(images))


def other_code() -> type[nn.Module]:
    """A class of the same name and settings."""

    class Own(nn.Module):
        __init__ = globals()["Own"].__init__

        def forward(self, images: Tensor) -> Tensor:
            LOG.debug("a global that belongs to the process")
            return self.bend(self.net(images)) + 1

    Own.__qualname__ = "Own"
    return Own


def changed(change: Callable[[nn.Sequential], object]) -> nn.Module:
    net = network()
    change(net)
    return net


def reader(value: float) -> Any:
    """A transform of a local class, which shows its address."""

    class Reader:
        __slots__ = ("value",)

        def __init__(self, value: float) -> None:
            self.value = value

        def __call__(self, image: object) -> Tensor:
            return torch.full((3, 8, 8), self.value)

    return Reader(value)


def closing_over(value: object) -> Any:
    return lambda image: torch.zeros(3, 8, 8) + value


TRANSFORMS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "lambda": lambda: lambda image: torch.zeros(3, 8, 8),
    "other lambda": lambda: lambda image: torch.ones(3, 8, 8),
    "other size": lambda: lambda image: torch.zeros(3, 8, 9),
    "nested": lambda: lambda image: (lambda: torch.zeros(3, 8, 8))(),
    "closure": lambda: closing_over(1),
    "other closure": lambda: closing_over(2),
    "array": lambda: closing_over(np.arange(3.0)),
    "other array": lambda: closing_over(np.arange(3.0) + 1),
    "partial": lambda: partial(torch.full, (3, 8, 8)),
    "other partial": lambda: partial(torch.full, (3, 8, 9)),
    "local class": lambda: reader(0.25),
    "other local class": lambda: reader(0.5),
    "method": lambda: reader(0.25).__call__,
    "cached": lambda: lru_cache(closing_over(1)),
    "set": lambda: closing_over(frozenset({"a", "b", "c", "d"})),
    "other set": lambda: closing_over(frozenset({"a", "b", "c", "e"})),
}

MODULES: dict[str, Callable[[], nn.Module]] = {
    "plain": network,
    "own": Own,
    "own, another setting": lambda: Own(2.0),
    "own, a table": lambda: Own(table={"a": [1, 2]}),
    "own, another table": lambda: Own(table={"a": [1, 3]}),
    "own, other code": lambda: other_code()(),
    "eps": lambda: changed(lambda net: setattr(net[1], "eps", 1e-3)),
    "an attribute": lambda: changed(lambda net: setattr(net[0], "scale", 2)),
    "a tensor that is no buffer": lambda: changed(lambda net: setattr(net[0], "scale", torch.ones(2))),
    "another tensor": lambda: changed(lambda net: setattr(net[0], "scale", torch.zeros(2))),
    "hidden buffer": lambda: changed(lambda net: net.register_buffer("h", torch.ones(2), persistent=False)),
    "other hidden buffer": lambda: changed(lambda net: net.register_buffer("h", torch.zeros(2), persistent=False)),
    "hook": lambda: changed(lambda net: net[0].register_forward_hook(lambda module, inputs, output: output * 2)),
    "other hook": lambda: changed(lambda net: net[0].register_forward_hook(lambda module, inputs, output: output * 3)),
    "forward of the instance": lambda: changed(lambda net: setattr(net, "forward", lambda x: x.mean((2, 3)))),
    "training": lambda: changed(lambda net: net[1].train()),
    "bfloat16": lambda: network().bfloat16(),
    "complex": lambda: changed(lambda net: net.register_buffer("h", torch.ones(2, dtype=torch.complex64))),
    "sparse": lambda: changed(lambda net: net.register_buffer("h", torch.eye(2).to_sparse())),
    "other sparse": lambda: changed(lambda net: net.register_buffer("h", (2 * torch.eye(2)).to_sparse())),
    "scalar": lambda: changed(lambda net: net.register_buffer("h", torch.tensor(1))),
    "empty": lambda: changed(lambda net: net.register_buffer("h", torch.ones(0, 3))),
    "recursive": lambda: changed(lambda net: setattr(net[0], "whole", [net])),
}


def test_every_difference_tells_and_nothing_else_does() -> None:
    seen: dict[object, str] = {}
    for name, make in TRANSFORMS.items():
        found = fingerprint(Classifier(network(), transform=make()))
        assert found == fingerprint(Classifier(network(), transform=make())), name
        assert found not in seen, (name, seen.get(found))
        seen[found] = name
    for name, module in MODULES.items():
        found = fingerprint(Classifier(module(), input_size=9))
        assert found == fingerprint(Classifier(module(), input_size=9)), name
        assert found not in seen, (name, seen.get(found))
        seen[found] = name


def test_what_is_no_difference() -> None:
    first = fingerprint(Classifier(network(), mean=0.5))
    assert fingerprint(Classifier(network(), mean=0.5, name="another")) == first
    named = Classifier(network(), mean=0.5, class_names=list("abcde"))
    assert fingerprint(named) == fingerprint(Classifier(network(), mean=0.5, num_classes=5))
    for copied in (copy.deepcopy(named), pickle.loads(pickle.dumps(named))):
        assert fingerprint(copied) == fingerprint(named)
    run = Classifier(network(), mean=0.5)
    run(torch.rand(1, 3, 9, 9))
    assert fingerprint(run) == first
    assert fingerprint(Classifier(torch.compile(network()), mean=0.5)) == first
    assert fingerprint(run.to(memory_format=torch.channels_last).requires_grad_(False)) == first


def programs(net: nn.Module) -> dict[str, nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(net)
        traced = torch.jit.trace(net, torch.rand(1, 3, 9, 9))
        return {"script": scripted, "trace": traced, "frozen": torch.jit.freeze(torch.jit.script(net))}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_programs(tmp_path: Path) -> None:
    weights, settings = network(), network()
    weights[5].bias.data[0] += 1e-4
    settings[3].output_size = 2  # an attribute, or a constant of the graph
    kinds = programs(network())
    for name, again in programs(network()).items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch's advice on saving is for its author
            first = fingerprint(load_classifier(kinds[name], input_size=9))
        assert fingerprint(load_classifier(again, input_size=9)) == first
        assert fingerprint(Classifier(programs(weights)[name], input_size=9, num_classes=5)) != first
        again.save(str(tmp_path / "a.pt"))
        assert fingerprint(load_classifier(tmp_path / "a.pt", input_size=9)) == first  # in channels-last
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fingerprint(Classifier(torch.jit.script(settings))) != fingerprint(
            Classifier(torch.jit.script(network()))
        )


def test_exported_programs(tmp_path: Path) -> None:
    found = []
    for shift in (0.0, 0.0, 1e-4):
        net = network()
        net[5].bias.data[0] += shift
        torch._dynamo.reset()
        torch.export.save(torch.export.export(net, (torch.rand(1, 3, 9, 9),)), tmp_path / "a.pt2")
        clf = load_classifier(tmp_path / "a.pt2", input_size=9)
        found.append(fingerprint(clf))
        clf(torch.rand(1, 3, 9, 9))
        assert fingerprint(clf) == found[-1]
    assert found[0] == found[1] != found[2]


def test_quantised_weights_count() -> None:
    quantisation = pytest.importorskip("torch.ao.quantization")
    found = []
    for scale in (1.0, 1.0, 1.5):
        net = network()
        net[5].weight.data[0] *= scale
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(fingerprint(Classifier(quantisation.quantize_dynamic(net, {nn.Linear}))))
    assert found[0] == found[1] != found[2]


@pytest.mark.slow
def test_all_of_them_are_the_same_in_every_process() -> None:
    """With another order of sets, another number of scripted classes before, and this file under another name."""
    script = (
        "import json, sys, warnings\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "exec(compile(open(sys.argv[2]).read(), sys.argv[2], 'exec'))\n"
        "programs(nn.Sequential(nn.Conv2d(3, 3, 1)).eval())\n"
        "print(json.dumps(everything()))"
    )
    here = Path(__file__)
    command = [sys.executable, "-c", script, str(here.parent), str(here)]
    expected = json.loads(json.dumps(everything()))
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PYTHONHASHSEED": "2", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def everything() -> dict[str, object]:
    found = {name: fingerprint(Classifier(network(), transform=make())) for name, make in TRANSFORMS.items()}
    found |= {name: fingerprint(Classifier(make(), input_size=9)) for name, make in MODULES.items()}
    return found | {name: fingerprint(Classifier(program)) for name, program in programs(network()).items()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_is_the_same_on_every_device() -> None:
    """Folded weights are computed on the CPU."""
    found = set()
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        found.add(fingerprint(load_classifier("test_efficientnet", pretrained=False, device=device)))
    assert len(found) == 1
