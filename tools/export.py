"""Copy a run's compact checkpoint: the same as ``prunegate export``, for a checkout without an install."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prunegate.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
