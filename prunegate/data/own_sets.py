"""Data sets made by the user's own code."""

from __future__ import annotations

from prunegate.data.settings import DataSettings
from prunegate.data.sources import Source, opened
from prunegate.errors import DataError
from prunegate.own_code import imported


def check_own(settings: DataSettings) -> None:
    """Raise DataError if the function does not exist; it is imported, as the recipe is the user's own, but not
    called."""
    imported(settings.name, "data.name", DataError)
    for key in ("folder", "train_split", "test_split"):
        if getattr(settings, key) is not None:
            raise DataError(
                f"data.{key}: {settings.name} is code of your own, expected no {key}: it only gets data.arguments. "
                f"Move it there."
            )


def open_own(settings: DataSettings) -> Source:
    """Call the function.

    Raises:
        DataError: As `check_own`, or it raises, or does not return two data sets.
    """
    check_own(settings)
    function = imported(settings.name, "data.name", DataError)
    try:
        made = function(**settings.arguments)
    except Exception as error:  # the user's function may raise anything
        raise DataError(f"data.name: {settings.name}: raised {type(error).__name__}: {error}.") from error
    if not (isinstance(made, (tuple, list)) and len(made) == 2):
        result = f"{len(made)} values" if isinstance(made, (tuple, list)) else f"a {type(made).__name__}"
        raise DataError(f"data.name: {settings.name}: returned {result}, expected a training set and a test set.")
    return opened(made[0], made[1], settings.name)
