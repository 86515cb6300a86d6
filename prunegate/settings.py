"""The base of everything that a recipe may say, shared by the sections that live beside what they describe."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors, and a recipe does not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # The key that a value without any is for: with "fraction", `budget: 0.5` is `budget: {fraction: 0.5}`.
    key_alone: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _with_key(cls, given: Any) -> Any:
        return cls.with_key(given)

    @classmethod
    def with_key(cls, given: Any) -> Any:
        """A value without keys, put under the key that it is for."""
        if cls.key_alone is not None and isinstance(given, (int, float, list)) and not isinstance(given, bool):
            return {cls.key_alone: given}
        return given
