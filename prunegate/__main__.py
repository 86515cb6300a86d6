"""``python -m prunegate``."""

from __future__ import annotations

import sys

from prunegate.cli import main

sys.exit(main())
