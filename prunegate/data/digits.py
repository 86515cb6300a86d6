"""scikit-learn's digits, whose images are part of its wheel and need no download."""

from __future__ import annotations

import importlib.util

import numpy as np

from prunegate.data.splits import Split
from prunegate.errors import DataError


def check_digits(folder: str | None) -> None:
    """Raise DataError if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise DataError(
            "data.name: digits needs scikit-learn, which is not installed. Its wheel holds the images. "
            "Run: pip install 'prunegate[demo]'."
        )
    if folder is not None:
        raise DataError("data.folder: digits come with scikit-learn, expected no folder. Remove the key.")


def read_digits() -> tuple[Split, Split]:
    """1,442 training and 355 test images of 8 × 8 pixels; every fifth image of each class is for testing."""
    from sklearn.datasets import load_digits

    result = load_digits()
    images, labels = result.images, result.target.astype(np.int64)
    # By the rank of each image within its class, so that both parts have the same distribution of classes.
    rank = np.empty(len(labels), dtype=np.int64)
    for digit in range(10):
        of_digit = np.flatnonzero(labels == digit)
        rank[of_digit] = np.arange(len(of_digit))
    test = rank % 5 == 4
    return (images[~test], labels[~test]), (images[test], labels[test])
