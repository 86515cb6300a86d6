"""Packages that are needed by an integration only."""

from __future__ import annotations

import importlib

from prunegate.errors import MissingPackageError


def require(package: str, extra: str) -> None:
    """Check that ``package`` can be imported.

    Raises:
        MissingPackageError: It cannot; also an ImportError.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"prunegate.integrations.{extra}: the package {package} cannot be imported ({error}). The "
            f"callback needs it. Install it: pip install 'prunegate[{extra}]'."
        ) from error
