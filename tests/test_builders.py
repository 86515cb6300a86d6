"""Builders build the models that the libraries list, refuse everything else with a message, and never download."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunegate.builders import Builder, input_shape
from prunegate.errors import ModelNameError


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("timm/test_resnet", {}),
        ("timm/test_resnet", {"in_chans": 1, "num_classes": 10}),
        ("torchvision/mobilenet_v3_small", {"num_classes": 7}),
        ("torchvision/googlenet", {}),  # warns unless told how to initialise
        ("torchvision/deeplabv3_resnet50", {"num_classes": 3}),  # fetches a backbone unless told not to
    ],
)
def test_build_gives_the_model_with_its_arguments(text: str, arguments: dict[str, Any]) -> None:
    builder = Builder.parse(text, arguments)
    model, skeleton = builder.build(), builder.skeleton()
    assert builder.full_name == text
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in skeleton.state_dict().items()}
    assert all(p.is_meta for p in skeleton.parameters())
    assert not any(p.is_meta for p in model.parameters())


def test_arguments_reach_the_model() -> None:
    model = Builder.parse("timm/test_resnet", {"in_chans": 1, "num_classes": 10}).build().eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_skeleton_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Builder.parse("timm/test_resnet").skeleton()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("text", ["timm/test_resnet", "timm/test_vit", "torchvision/resnet18"])
def test_zeroed_model_is_real_and_zero(text: str) -> None:
    model = Builder.parse(text).zeroed()
    assert sum(p.numel() for p in model.parameters()) > 0
    assert all(not p.is_meta and p.count_nonzero() == 0 for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())


@pytest.mark.parametrize("text", ["timm/resnet18", "torchvision/resnet18"])
def test_dict_round_trip(text: str) -> None:
    builder = Builder.parse(text, {"num_classes": 3})
    assert Builder.from_dict(builder.as_dict()) == builder


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "resnet18",
            "expected timm/<name>, torchvision/<name> or prunegate/<name>. Nearest: timm/resnet18",
        ),
        ("timm/resnet_18", "timm has no model 'resnet_18'. Nearest: timm/resnet18"),
        ("torchvision/mobilenetv2", "torchvision has no model 'mobilenetv2'. Nearest: torchvision/mobilenet_v2"),
        ("keras/resnet18", "found 'keras/resnet18', expected timm/<name>"),
        ("timm/hf-hub:someone/model", "timm has no model 'hf-hub:someone/model'"),
        ("timm/", "timm has no model ''"),
        ("", "found '', expected timm/<name>"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(text: str, shown: str) -> None:
    with pytest.raises(ModelNameError) as caught:
        Builder.parse(text)
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "weights", "weights_backbone", "checkpoint_path"],
)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_argument_that_fetches_is_refused(library: str, key: str) -> None:
    with pytest.raises(ModelNameError, match=f"argument '{key}' is refused. Models are built without downloading"):
        Builder.parse(f"{library}/resnet18", {key: True})


@pytest.mark.parametrize("value", ["/etc/passwd", "hf-hub:a", "C:\\weights", ["ok", "https://example.org"]])
def test_argument_that_looks_like_an_address_is_refused(value: Any) -> None:
    with pytest.raises(ModelNameError, match="looks like a path or address"):
        Builder.parse("timm/resnet18", {"act_layer": value})


def test_argument_that_is_no_plain_value_is_refused() -> None:
    with pytest.raises(ModelNameError, match="argument 'block': found dict, expected a plain value"):
        Builder.parse("timm/resnet18", {"block": {"a": 1}})


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("timm/test_resnet", {"no_such_argument": 1}),
        ("timm/test_resnet", {"in_chans": -1}),
        ("timm/test_resnet", {"model_name": "resnet18"}),
        ("torchvision/resnet18", {"no_such_argument": 1}),
        ("torchvision/resnet18", {"num_classes": "many"}),
        ("torchvision/mobilenet_v2", {"width_mult": None}),
    ],
)
def test_wrong_arguments_are_one_named_error(text: str, arguments: dict[str, Any]) -> None:
    key = next(iter(arguments))
    with pytest.raises(ModelNameError, match=f"{text}: cannot be built with {key}="):
        Builder.parse(text, arguments).build()


@pytest.mark.parametrize(
    "junk",
    [
        None,
        [],
        {},
        "timm/resnet18",
        {"library": "timm", "name": "resnet18"},
        {"library": "timm", "name": "resnet18", "arguments": {}, "code": "x"},
        {"library": "timm", "name": 3, "arguments": {}},
        {"library": "timm", "name": "resnet18", "arguments": []},
        {"library": ["timm"], "name": "resnet18", "arguments": {}},
    ],
)
def test_from_dict_refuses_another_form(junk: Any) -> None:
    with pytest.raises(ValueError, match="builder: expected"):
        Builder.from_dict(junk)


@pytest.mark.parametrize(
    "stranger",
    [
        {"library": "os", "name": "system", "arguments": {}},
        {"library": "timm", "name": "../x", "arguments": {}},
        {"library": "timm", "name": "resnet18", "arguments": {"pretrained": True}},
        {"library": "torchvision", "name": "resnet18", "arguments": {"weights": "DEFAULT"}},
        {"library": "timm", "name": "resnet18", "arguments": {"checkpoint_path": "x"}},
    ],
)
def test_from_dict_builds_only_what_is_listed(stranger: dict[str, Any]) -> None:
    with pytest.raises(ModelNameError):
        Builder.from_dict(stranger)


@pytest.mark.parametrize(
    ("text", "arguments", "shape"),
    [
        ("timm/test_resnet", {}, (3, 160, 160)),
        ("timm/test_resnet", {"in_chans": 1}, (1, 160, 160)),
        ("timm/test_vit", {"img_size": 64}, (3, 64, 64)),
        ("timm/test_vit", {"img_size": [64, 32]}, (3, 64, 32)),
        ("torchvision/resnet18", {}, (3, 224, 224)),
        ("torchvision/inception_v3", {}, (3, 299, 299)),
        ("torchvision/r3d_18", {}, (3, 16, 224, 224)),
    ],
)
def test_input_shape_is_what_the_model_is_run_on(text: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    builder = Builder.parse(text, arguments)
    assert input_shape(builder, builder.skeleton()) == shape
