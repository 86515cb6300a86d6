"""The base of everything that a recipe may say, shared by the sections that live beside what they describe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors, and a recipe does not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
