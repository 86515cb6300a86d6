"""The base class of all recipe sections, which are defined next to the code that they configure."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors, and recipes are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # The key for a plain value: with "fraction", `budget: 0.5` means `budget: {fraction: 0.5}`.
    key_alone: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _with_key(cls, given: Any) -> Any:
        return cls.with_key(given)

    @classmethod
    def with_key(cls, given: Any) -> Any:
        """Put a plain value under its key."""
        if cls.key_alone is not None and isinstance(given, (int, float, list)) and not isinstance(given, bool):
            return {cls.key_alone: given}
        return given
