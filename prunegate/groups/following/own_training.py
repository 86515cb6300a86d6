"""Whether a model's own code acts differently in training, read off the code."""

from __future__ import annotations

import inspect
from functools import lru_cache
from types import CodeType
from typing import Any

from torch import nn


def differs_in_training(model: nn.Module) -> bool:
    """Whether code of the model, other than torch's own layers, looks at which mode it is in."""
    classes: set[Any] = {type(module) for module in model.modules()}
    return any(map(_looks_at_training, classes))


@lru_cache(maxsize=4096)
def _looks_at_training(cls: type) -> bool:
    for base in cls.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for member in vars(base).values():
            code = getattr(inspect.unwrap(member) if callable(member) else member, "__code__", None)
            if code is not None and _names_training(code):
                return True
    return False


def _names_training(code: CodeType) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return "training" in code.co_names or any(map(_names_training, inner))
