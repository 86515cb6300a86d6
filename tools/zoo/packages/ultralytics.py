"""Models of ultralytics, from their yaml files at the smallest scale."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .case import PackageCase, image


def _yolo(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from ultralytics import YOLO

        model: nn.Module = YOLO(f"{name}.yaml", verbose=False).model
        return model

    return build


def _rt_detr() -> nn.Module:
    """A quarter as wide and a third as deep as rtdetr-l, with fewer queries."""
    from ultralytics.nn.tasks import RTDETRDetectionModel, yaml_model_load

    settings = yaml_model_load("rtdetr-l.yaml")
    settings["scales"] = {"l": [0.33, 0.25, 1024]}
    settings["scale"] = "l"
    # Classes, width, queries, points, heads, layers, width of the feed-forward part.
    settings["head"][-1][3] = ["nc", 64, 30, 4, 4, 2, 96]
    model: nn.Module = RTDETRDetectionModel(settings, nc=8, verbose=False)
    return model


def _case(name: str) -> PackageCase:
    return PackageCase(_yolo(name), image(), 64, 96, selects=name in ("yolov10n", "yolo26n"))


_NAMES = """yolov5n yolov8n yolov8n-seg yolov8n-obb yolov9t yolov10n yolo11n yolo11n-cls yolo11n-pose yolo12n
    yolo26n""".split()

CASES: dict[str, PackageCase] = {
    **{f"ultralytics/{name}": _case(name) for name in _NAMES},
    "ultralytics/rtdetr-l": PackageCase(_rt_detr, image(), 64, 96, selects=True),
}
