"""Without its framework, an integration says how to install it, and the rest of prunegate works."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from prunegate import MissingPackageError, PrunegateError


@pytest.mark.parametrize(("name", "package"), [("lightning", "lightning.pytorch"), ("transformers", "transformers")])
def test_missing_package_is_named_with_its_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"prunegate.integrations.{name}", raising=False)
    with pytest.raises(MissingPackageError, match=rf"{package}.*pip install 'prunegate\[{name}\]'") as raised:
        importlib.import_module(f"prunegate.integrations.{name}")
    assert isinstance(raised.value, ImportError)
    assert isinstance(raised.value, PrunegateError)


def test_prunegate_imports_neither_framework() -> None:
    code = (
        "import sys; sys.modules.update({'lightning': None, 'transformers': None})\n"
        "import prunegate, prunegate.training, prunegate.recipe, prunegate.integrations; prunegate.GateSteps"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
