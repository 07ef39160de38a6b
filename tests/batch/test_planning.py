"""Plans for models and methods: what is found out at planning, and what is refused when it is carried out."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import load_classifier, load_embedded_classifier
from fampe_fast.batch.model_spec import ModelSpec
from fampe_fast.batch.plan import Plan, Row, read_back, write_plan
from fampe_fast.batch.planning import images_per_batch, make_plan, method_of
from fampe_fast.batch.storage import open_storage
from fampe_fast.errors import FampeWarning
from fampe_fast.methods.registry import create_method
from fampe_fast.models import Classifier
from fampe_fast.models.embedded import SOURCE as EMBEDDED
from fampe_fast.models.loading import absolute_source

pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load_embedded_classifier()


def planned(classifier: Classifier, method: str = "centre_prior", options: Any = None, **settings: Any) -> Plan:
    return make_plan(classifier, ModelSpec(source=EMBEDDED), method, options or {}, ["/photos"], **settings)


def carried_out(plan: Plan, folder: Path) -> Plan:
    """Write a plan, and read it as another process does."""
    write_plan(open_storage(folder), plan, [Row(0, 0, "/photos/a.png")])
    return read_back(open_storage(folder))


@pytest.mark.parametrize(
    ("method", "options", "channels", "precision"),
    [
        ("fampe", {"passes": 1}, 1, "fp32"),
        ("fampe", {"passes": 1, "precision": "bf16"}, 1, "bf16"),
        ("attexplore", {"steps": 1, "samples": 1, "bounds": (0.0, 1.0)}, 3, "fp32"),
        ("forgrad_fampe", {"passes": 1, "precision": "bf16"}, 1, "bf16"),
        ("saliency", {}, 3, "fp32"),
        ("gradcam", {}, 1, "fp32"),
        ("random_map", {"seed": 3}, 1, "fp32"),
    ],
)
def test_a_plan_finds_the_shape_of_the_maps_and_its_method_again(
    classifier: Classifier, tmp_path: Path, method: str, options: Any, channels: int, precision: str
) -> None:
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    plan = planned(classifier, method, options)
    assert plan.shape == (channels, 96, 96)
    assert plan.precision == precision
    assert "unknown" not in plan.everything
    assert (plan.device, plan.classes, plan.internal_batch_size) == ("cpu", classifier.num_classes, 8)
    assert plan.threads == torch.get_num_threads()
    again = method_of(carried_out(plan, tmp_path), ModelSpec(source=EMBEDDED).load("cpu"))
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    expected = create_method(method, classifier, **options).attribute(image, 1, image_ids=[7])
    assert torch.equal(again.attribute(image, 1, image_ids=[7]), expected)


def test_a_process_that_rounds_otherwise_is_warned_of(classifier: Classifier, tmp_path: Path) -> None:
    plan = carried_out(planned(classifier), tmp_path)
    with pytest.warns(FampeWarning, match=r"passes in tf32, and in this process they are in fp32, which changes"):
        method_of(replace(plan, precision="tf32"), classifier)
    method_of(replace(plan, precision="tf32", device="cuda"), classifier)  # on another device all bits are others


def test_more_numbers_than_a_shard_can_hold_are_refused(classifier: Classifier) -> None:
    most = (2**31 - 1) // (96 * 96)
    assert planned(classifier, rows_per_shard=most).rows_per_shard == most
    with pytest.raises(
        ValueError, match=rf"rows_per_shard must be {most} at most for maps of \(1, 96, 96\), got 233017"
    ):
        planned(classifier, rows_per_shard=most + 1)


def test_another_model_is_refused_with_both_fingerprints(classifier: Classifier, tmp_path: Path) -> None:
    plan = carried_out(planned(classifier), tmp_path)
    other = load_embedded_classifier()
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match=rf"not the planned one: .*{plan.identity['fingerprint']} in the plan"):
        method_of(plan, other)


def test_other_settings_of_the_method_are_refused(classifier: Classifier, tmp_path: Path) -> None:
    plan = carried_out(planned(classifier, "random_map", {"seed": 3}), tmp_path)
    with pytest.raises(
        ValueError, match=r"settings are not the planned ones: everything\.config\.seed: 3 there, 4 now"
    ):
        method_of(replace(plan, options={"seed": 4}), classifier)


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"rows_per_shard": 0}, ValueError, "rows_per_shard"),
        ({"rows_per_shard": 1.5}, TypeError, "rows_per_shard"),
        ({"batch_size": -1}, ValueError, "batch_size"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size"),
        ({"sample": 0}, ValueError, "sample"),
        ({"max_bytes": "x"}, TypeError, "max_bytes"),
        ({"max_pixels": 178_956_971}, ValueError, "max_pixels must be 178956970 at most"),
        ({"map_dtype": "int8"}, ValueError, "map_dtype must be one of float16, float32"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_numbers_out_of_range_are_refused(
    classifier: Classifier, settings: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        planned(classifier, **settings)


class Failing(nn.Module):
    """Answers a few times, and fails then."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad and images.shape[-1] == 16:
            raise KeyError("foreign code")
        return torch.stack([images.mean((1, 2, 3)) * self.scale, images.amax((1, 2, 3))], 1)


def test_a_model_that_the_method_fails_on_is_refused_at_planning() -> None:
    classifier = load_classifier(Failing(), input_size=16)
    with pytest.raises(ValueError, match="foreign code"):
        make_plan(classifier, ModelSpec(source="x"), "saliency", {}, ["/photos"])


def test_a_map_of_zeros_does_not_tell_how_many_channels_there_are() -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.mean((1, 2, 3)) * 0, images.mean((1, 2, 3)) * 0 - 1], 1)

    pytest.importorskip("captum")
    classifier = load_classifier(Flat(), input_size=16)
    plan = make_plan(classifier, ModelSpec(source="x"), "saliency", {}, ["/photos"])
    assert plan.shape == (3, 16, 16)


def test_the_batch_depends_on_the_device_and_on_who_names_it(classifier: Classifier) -> None:
    spec = ModelSpec(source=EMBEDDED)
    assert make_plan(classifier, spec, "centre_prior", {}, ["/photos"]).batch_size == 8
    assert make_plan(classifier, spec, "centre_prior", {}, ["/photos"], batch_size=None).batch_size == 8
    assert make_plan(classifier, spec, "centre_prior", {}, ["/photos"], batch_size=3).batch_size == 3
    assert [images_per_batch(torch.device(kind)) for kind in ("cpu", "cuda", "xpu")] == [8, 32, 32]


def test_sources_are_kept_without_secrets(classifier: Classifier) -> None:
    web = make_plan(
        classifier, ModelSpec(source=EMBEDDED), "centre_prior", {}, ["https://host/t.csv?token=1", "photos"]
    )
    assert web.sources == ("https://host/t.csv", os.path.abspath("photos"))


# The model ------------------------------------------------------------------------------------------------------------


def test_a_models_place_is_absolute_and_its_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("resnet18", "timm/resnet18", "torchvision/resnet18", "torchvision:resnet18", "hf-hub:a/b", "gone"):
        assert absolute_source(name) == name
    for path in ("./resnet18", "model.pt", "models/x.pt2", "folder"):
        assert absolute_source(path) == str(tmp_path / path)
    assert absolute_source("local-dir:folder") == f"local-dir:{tmp_path}/folder"


def test_a_spec_survives_json() -> None:
    spec = ModelSpec(
        source="resnet18", mean=(0.1, 0.2, 0.3), std=0.5, input_size=96, model_args={"a": 1}, class_names=("cat", "dog")
    )
    assert ModelSpec.from_json(json.loads(json.dumps(spec.__dict__))) == spec


def test_a_spec_loads_what_load_classifier_loads(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(
        timm.create_model("test_efficientnet", pretrained=False, num_classes=4).state_dict(), tmp_path / "w.safetensors"
    )
    names = ("a", "b", "c", "d")
    spec = ModelSpec(
        source="test_efficientnet", weights=str(tmp_path / "w.safetensors"), input_size=64, std=0.5, class_names=names
    )
    loaded = spec.load("cpu")
    expected = load_classifier(
        "test_efficientnet", weights=tmp_path / "w.safetensors", input_size=64, std=0.5, class_names=names
    )
    assert loaded.class_names == names
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(image), expected(image))
    assert math.isclose(float(loaded.std[0, 0, 0, 0]), 0.5)
