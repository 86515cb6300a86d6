"""Models of twelve packages beside torchvision, timm and this project's own: how each is built and called."""

from __future__ import annotations

from importlib import import_module

from .case import PackageCase

__all__ = ["PackageCase", "case_of", "names"]

# A file of cases for each; names of models begin with the package.
_FILES = (
    "transformers_text",
    "transformers_vision",
    "transformers_other",
    "diffusers",
    "ultralytics",
    "segmentation_models",
    "spandrel",
    "monai",
    "pytorchcv",
    "kornia",
    "open_clip",
    "torch_geometric",
    "vit_pytorch",
    "small_packages",
    "own_copies",
)


def _cases(file: str) -> dict[str, PackageCase]:
    cases: dict[str, PackageCase] = import_module(f"{__name__}.{file}").CASES
    return cases


def names() -> list[str]:
    """All models, as PACKAGE/MODEL; packages themselves are only imported where a model is built."""
    return [name for file in _FILES for name in _cases(file)]


def case_of(name: str) -> PackageCase:
    """The case of a model named as `names` does."""
    return next(cases[name] for file in _FILES if name in (cases := _cases(file)))
