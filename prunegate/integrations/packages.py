"""Packages that only an integration needs."""

from __future__ import annotations

import importlib

from prunegate.errors import MissingPackageError


def require(package: str, extra: str) -> None:
    """Make sure that ``package`` can be imported.

    Raises:
        MissingPackageError: It cannot; also an ImportError.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"prunegate.integrations.{extra}: found no usable package {package} ({error}), expected it installed. The "
            f"callback is made for it. Install it: pip install 'prunegate[{extra}]'."
        ) from error
