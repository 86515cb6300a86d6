"""Objects made by the user's own code, named ``module:function`` by the user, never by a checkpoint."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from prunegate.errors import ModelNameError, PrunegateError


@dataclass(frozen=True)
class OwnBuilder:
    """How to make a dense model with the user's function or class.

    Attributes:
        name: ``"module:function"``, importable from where the command runs.
        arguments: Keyword arguments.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        return self.name

    def function(self) -> Callable[..., Any]:
        """Import the function.

        Raises:
            ModelNameError: The module or function does not exist.
        """
        return imported(self.name, "model name")

    def build(self) -> nn.Module:
        """The dense model.

        Raises:
            ModelNameError: The function raises an error, or does not return a module.
        """
        function = self.function()
        try:
            model = function(**self.arguments)
        except Exception as error:  # the user's function may raise anything
            raise ModelNameError(f"{self.name}: raised {type(error).__name__}: {error}.") from error
        if not isinstance(model, nn.Module):
            raise ModelNameError(f"{self.name}: made a {type(model).__name__}, expected a module.")
        return model


@contextmanager
def importable_from_here() -> Iterator[str]:
    """Within the block, modules in the current folder can be imported, as with `python -m`; yields the folder."""
    here = os.getcwd()
    sys.path.insert(0, here)  # an installed command does not have it
    try:
        yield here
    finally:
        sys.path.remove(here)


def imported(name: str, what: str, kind: type[PrunegateError] = ModelNameError) -> Callable[..., Any]:
    """The user's function or class by its name ``module:function``.

    Args:
        what: Start of the messages: where the name was given, such as "model name" or "data.name".
        kind: Class of the errors.

    Raises:
        PrunegateError: Of ``kind``; the module or function does not exist.
    """
    module, _, path = name.partition(":")
    with importable_from_here() as here:
        if here not in sys.path[1:]:
            sys.path.append(here)  # the module may import its siblings later, when its functions run
        try:
            result: Any = importlib.import_module(module)
            for part in path.split("."):
                result = getattr(result, part)
        except Exception as error:  # the user's module may raise anything
            raise kind(
                f"{what}: {name!r} cannot be imported from {here}: {type(error).__name__}: {error}. "
                "Use module:function, where module is in the current folder or installed."
            ) from error
    if not callable(result):
        raise kind(f"{what}: {name!r} is a {type(result).__name__}, expected a function or class.")
    made: Callable[..., Any] = result
    return made


def is_own(name: str) -> bool:
    """Whether a name is ``module:function``."""
    module, colon, function = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *function.split(".")))
