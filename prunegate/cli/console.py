"""Where commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    from rich.console import Console

    return Console()


def say(text: str) -> None:
    """Print plain text, without colours or line wrapping."""
    console().print(text, highlight=False, soft_wrap=True, markup=False)
