"""Raw images and labels of one part of a data set, as in its files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Pixels, (samples, height, width) or (samples, channels, height, width), and class indices, (samples,).
Split = tuple[npt.NDArray[np.uint8] | npt.NDArray[np.float64], npt.NDArray[np.int64]]
