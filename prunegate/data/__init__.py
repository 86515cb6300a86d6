"""Data: training and test samples in batches that depend only on their position.

Small data sets are held in memory (`ImageData`). All others are read from files on demand: folders of images,
torchvision's and timm's data sets by name, and the user's own.
"""

from __future__ import annotations

from prunegate.data.batches import Batch, Data, Share
from prunegate.data.load import check_data, load_data
from prunegate.data.meaning import Meaning
from prunegate.data.memory import ImageData
from prunegate.data.settings import DataSettings
from prunegate.data.shifting import augmented

__all__ = ["Batch", "Data", "DataSettings", "ImageData", "Meaning", "Share", "augmented", "check_data", "load_data"]
