"""Compact models to save, and files to tamper with."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import prunegate
from prunegate import compaction
from prunegate.builders import Builder
from prunegate.groups import ExampleInputs
from tests.conftest import SmallNet, random_masks, randomise

# Of each kind of model: its name, the side of its images and the back-end.
MODELS = {
    "residual": ("timm/test_resnet", 64, "auto"),
    "squeeze-excite": ("torchvision/mobilenet_v3_small", 64, "auto"),
    "grouped": ("torchvision/regnet_y_400mf", 64, "auto"),
    "branches": ("torchvision/googlenet", 64, "auto"),
    "channels last": ("timm/test_convnext", 64, "auto"),
    "standardised weights": ("timm/test_nfnet", 64, "auto"),
    "transformer": ("timm/test_vit", 160, "auto"),
    "transformer as a graph": ("timm/test_vit", 160, "graph"),
    "windows": ("timm/swin_s3_tiny_224", 224, "auto"),
    "hybrid": ("timm/mobilevit_xxs", 64, "auto"),
    "segmentation": ("torchvision/lraspp_mobilenet_v3_large", 64, "auto"),
    "detection": ("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", 64, "auto"),
    "own class": ("SmallNet", 16, "auto"),
    "own class as a graph": ("SmallNet", 16, "graph"),
}
# Of some kinds, smaller models: a sixth of the time. How these are built has to be said; else it is found out.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "windows": {
        "img_size": 112,
        "embed_dim": 48,
        "depths": [2, 2, 2],
        "num_heads": [2, 4, 8],
        "window_size": [7, 7, 7],
    },
    "detection": {"min_size": 96, "max_size": 96},
}


def dense(name: str, **arguments: Any) -> nn.Module:
    """A model with random weights, in eval mode."""
    model = SmallNet() if name == "SmallNet" else Builder.parse(name, arguments).build()
    return randomise(model).eval()


def compacted(
    name: str, size: int = 64, backend: str = "auto", **arguments: Any
) -> tuple[prunegate.Compaction, torch.Tensor]:
    """A model with random weights and half of its units removed at random; and an input."""
    model = dense(name, **arguments)
    x = torch.randn(2, arguments.get("in_chans", 3), size, size, generator=torch.Generator().manual_seed(0))
    gated = prunegate.wrap(model, x, backend=backend)
    gated.set_masks(random_masks(gated.groups, 0.5, 0))
    return prunegate.compact(gated), x


# Made once in each process, for all that do not change what they are given.
compacted_once = functools.cache(compacted)


def outputs_of(model: nn.Module, x: Any) -> list[torch.Tensor]:
    """All tensors a model returns, in nested containers or not."""
    return compaction.outputs_of(model.eval(), ExampleInputs.of(x))


def resealed(document: Any) -> Any:
    """A changed document with the hash that it then has: what whoever changes it on purpose can do."""
    if not isinstance(document, dict) or "document_sha256" not in document:
        return document
    rest = {name: value for name, value in document.items() if name != "document_sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "document_sha256": hashlib.sha256(text.encode()).hexdigest()}


def rewritten(file: Path, change: Any, reseal: bool = True) -> Path:
    """The file with its document changed, and the document's hash with it, and everything else as it was."""
    with safe_open(str(file), framework="pt") as opened:
        document = json.loads(opened.metadata()["prunegate"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(document)
    document = resealed(document) if reseal else document
    save_file(tensors, str(file), metadata={"prunegate": json.dumps(document)})
    return file
