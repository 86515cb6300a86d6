"""Which models the zoo has, and what each is called with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from zoo.exact import run

# Makes the arguments of one call, in the form that `prunegate.wrap` takes, for a number of samples.
Inputs = Callable[[int], Any]
# Sides of images that are tried, smallest first. Double precision on one thread is slow.
_SIDES = (64, 96, 128, 160, 224)
_FRAMES = ((8, 64, 64), (8, 112, 112), (16, 112, 112))
_FAMILIES = Path(__file__).parent / "timm_families.json"


@dataclass
class Case:
    """One model and how it is called.

    Attributes:
        classes: What it tells apart, to find its last layers; 0 if it is no classifier.
        pretrained: Its weights mean something and stay.
        selects: It picks by what it computes (detectors), so rounding may change what comes out.
    """

    model: nn.Module
    inputs: Inputs
    classes: int = 0
    pretrained: bool = False
    selects: bool = False


def names_of(library: str) -> list[str]:
    if library == "torchvision":
        from torchvision.models import list_models

        return [name for name in list_models() if not name.startswith("quantized_")]
    if library == "timm":
        return sorted(_smallest_of_each_family())
    from zoo.language import MAKERS

    return list(MAKERS)


def build(name: str) -> Case:
    """The model, in eval mode, and what it is called with."""
    library, _, model = name.partition("/")
    if library == "torchvision":
        case = _torchvision(model)
    elif library == "timm":
        case = _timm(model)
    else:
        from zoo.language import MAKERS

        case = MAKERS[model]()
    case.model.eval()
    return case


# torchvision -----------------------------------------------------------------------------------


def _torchvision(name: str) -> Case:
    from torchvision.models import get_model, get_model_builder

    builder = get_model_builder(name)
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    accepted = inspect.signature(builder).parameters
    arguments: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in accepted else {}
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True  # they warn unless they are told
    if kind == "detection":
        # An SSD resizes to the size it was made for; the others do not need to work on 800 pixels.
        arguments |= {} if name.startswith("ssd") else {"min_size": 128, "max_size": 160}
        if "rcnn" in name:  # random weights see a hundred objects in noise, and each costs as much as an image
            arguments |= {"rpn_post_nms_top_n_test": 50, "box_detections_per_img": 5}
        return Case(get_model(name, weights=None, **arguments), _image_list(3, 128, 160), classes=91, selects=True)
    if kind == "vision_transformer":
        side = 4 * int(name.rpartition("_")[2])  # names end in the side of a patch
        model = get_model(name, weights=None, image_size=side, **arguments)
        return Case(model, _images(3, side, side), classes=1000)
    if name.startswith("mvit"):
        return Case(_small_mvit(name), _images(3, 16, 64, 64), classes=400)
    model = get_model(name, weights=None, **arguments).eval()
    if kind == "optical_flow":
        return Case(model, _image_pairs)
    if kind == "video":
        frames = [(3, *shape) for shape in (*_FRAMES, (16, 224, 224))]
        return Case(model, _smallest_that_runs(model, frames), classes=400)
    last = 299 if name == "inception_v3" else 224
    shapes = [(3, side, side) for side in (*_SIDES, last)]
    return Case(model, _smallest_that_runs(model, shapes), classes=21 if kind == "segmentation" else 1000)


def _small_mvit(name: str) -> nn.Module:
    """An MViT for images of 64 x 64: its builder fixes 224 x 224, which is slow; its class takes any size."""
    from torchvision.models import get_model
    from torchvision.models.video import mvit

    def small(**arguments: Any) -> nn.Module:
        return made(**{**arguments, "spatial_size": (64, 64)})

    made = mvit.MViT
    with mock.patch.object(mvit, "MViT", small):
        return get_model(name, weights=None)


def _images(*shape: int) -> Inputs:
    return lambda batch: torch.randn(batch, *shape)


def _image_list(*shape: int) -> Inputs:
    return lambda batch: ([torch.rand(shape) for _ in range(batch)],)


def _image_pairs(batch: int) -> dict[str, Any]:
    """Two images for optical flow, its sides divisible by 8 and at least 128; fewer rounds than its default."""
    first, second = torch.randn(2, batch, 3, 128, 136)
    return {"image1": first, "image2": second, "num_flow_updates": 3}


def _smallest_that_runs(model: nn.Module, shapes: Iterable[tuple[int, ...]]) -> Inputs:
    """Inputs of the first shape that the model takes; of the last one if it takes none."""
    shape: tuple[int, ...] = ()
    for shape in shapes:
        try:
            run(model, _images(*shape)(2))
            break
        except Exception:  # a foreign forward may raise anything on a size it is not made for
            continue
    return _images(*shape)


# timm ------------------------------------------------------------------------------------------


def _timm(name: str) -> Case:
    import timm

    model = timm.create_model(name).eval()
    config = model.pretrained_cfg
    channels, height, width = config["input_size"]
    shapes = [(channels, height, width)]
    if not config.get("fixed_input_size"):
        shapes = [(channels, side, side) for side in _SIDES if side < min(height, width)] + shapes
    return Case(model, _smallest_that_runs(model, shapes), classes=getattr(model, "num_classes", 0))


def _smallest_of_each_family() -> list[str]:
    """The model with the fewest parameters of every family module; counted once, then read from a file."""
    import timm

    known = json.loads(_FAMILIES.read_text()) if _FAMILIES.exists() else {}
    if known.get("timm") == timm.__version__:
        return list(known["models"])
    smallest: dict[str, tuple[int, str]] = {}
    for family in timm.list_modules():
        for name in timm.list_models(module=family):
            count = _count_parameters(name)
            if count is not None:
                smallest[family] = min(smallest.get(family, (count, name)), (count, name))
    models = sorted(name for _, name in smallest.values())
    _FAMILIES.write_text(json.dumps({"timm": timm.__version__, "models": models}, indent=1) + "\n")
    return models


def _count_parameters(name: str) -> int | None:
    """Parameters of a timm model, counted without making them; none if it cannot be built that way."""
    import timm
    from accelerate import init_empty_weights

    for buffers in (True, False):  # some constructors compute with buffers and need real ones
        try:
            with init_empty_weights(include_buffers=buffers):
                return sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        except Exception:  # a foreign constructor may raise anything
            continue
    return None
