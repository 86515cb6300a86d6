"""Reading, checking and transforming one sample at a time, with its own random numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset, default_collate

from prunegate.data.batches import Batch
from prunegate.data.randomness import SAMPLE
from prunegate.data.unreadable import READING_ERRORS, Unreadable, file_of, whole_images_only
from prunegate.errors import DataError
from prunegate.seeding import seeded


@dataclass(frozen=True)
class Part:
    """The training or the test samples of a data set, in their order.

    Attributes:
        dataset: Map-style; samples are (PIL image or float tensor (C, H, W), class index), or (float tensor, label of
            any form), or dicts that contain the input.
        chosen: The samples that are used.
        transform: From a PIL image to a float tensor (C, H, W); tensors are used unchanged.
        mode: PIL mode that images are first converted to.
        num_classes: Number of classes; None if labels are of any form.
        images_only: Tensors are refused, because the user requested transforms.
    """

    name: str
    dataset: Any
    chosen: torch.Tensor
    transform: Callable[[Image.Image], torch.Tensor]
    mode: str
    num_classes: int | None
    images_only: bool

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> tuple[Image.Image | torch.Tensor, Any]:
        """One sample of the data set, unchanged.

        Raises:
            DataError: It is not a pair of an image and a class, or the data set raises another error.
            READING_ERRORS: Its file cannot be read.
        """
        try:
            sample = self.dataset[index]
            image, label = _parts(sample, index) if isinstance(sample, Mapping) else (sample[0], sample[1])
            if isinstance(image, Image.Image):
                # Here instead of in the transform, as PIL reads pixels lazily.
                image = image.convert(self.mode)
        except (*READING_ERRORS, DataError):
            raise
        except Exception as error:  # the data set may be the user's own and raise anything
            raise DataError(f"data: {self.name} sample {index}: raised {type(error).__name__}: {error}.") from error
        return self._image(image, index), self._label(label, index)

    def _image(self, image: Any, index: int) -> Image.Image | torch.Tensor:
        if isinstance(image, Image.Image) and self.num_classes is None:
            raise DataError(
                f"data.labels: {self.name} sample {index}: found a PIL image, expected a float tensor (channels, "
                "height, width). Images are moved and cropped at random, and labels of any form would not follow. "
                "Transform both in the data set."
            )
        if isinstance(image, Image.Image):
            return image
        if isinstance(image, torch.Tensor) and self.images_only:
            raise DataError(
                f"data.transform: {self.name} sample {index}: found a tensor, which is taken as it is, expected a PIL "
                "image to transform. Remove data.transform, or give PIL images."
            )
        if isinstance(image, torch.Tensor) and image.dim() == 3 and image.is_floating_point():
            return image.float()
        result = f"{image.dtype} of shape {tuple(image.shape)}" if hasattr(image, "dtype") else type(image).__name__
        raise DataError(
            f"data: {self.name} sample {index}: found {result}, expected a PIL image or a float tensor "
            "(channels, height, width). Convert it in the data set."
        )

    def _label(self, label: Any, index: int) -> Any:
        if self.num_classes is None:
            return label
        try:
            number = operator.index(label)
        except TypeError:
            number = -1
        if not 0 <= number < self.num_classes:
            raise DataError(
                f"data: {self.name} sample {index}: found label {label!r}, expected a class index from 0 to "
                f"{self.num_classes - 1}. Set data.num_classes, or name a part with such labels in "
                "data.train_split and data.test_split. For labels that are not classes set data.labels=any, "
                "training.loss and training.metric."
            )
        return number


class Sample(NamedTuple):
    """A sample, with None as its input if it could not be read, and the files that could not be read."""

    input: torch.Tensor | None
    label: Any
    number: int
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True)
class Samples(Dataset[Sample]):
    """The samples of a part at their positions, in one epoch: a pure function of part, seed, epoch and position.

    Random numbers are seeded for each sample, so they do not depend on the worker or on earlier samples.

    Attributes:
        tries: Number of files that are tried: an unreadable one is replaced by the next. With 1, none is replaced.
    """

    part: Part
    seed: int
    epoch: int
    tries: int

    def __getitem__(self, position: int) -> Sample:
        unreadable: list[Unreadable] = []
        index = position
        for further in range(min(self.tries, len(self.part))):
            index = int(self.part.chosen[(position + further) % len(self.part)])
            # The key depends on the position, so that a replacement is augmented differently from its own sample.
            with seeded(SAMPLE, self.seed, self.epoch, position):
                try:
                    with whole_images_only():
                        image, label = self.part.read(index)
                except READING_ERRORS as error:
                    file = file_of(self.part.dataset, index, self.part.name)
                    unreadable.append(Unreadable(file, f"{type(error).__name__}: {error}"))
                    continue
                made = image if isinstance(image, torch.Tensor) else self._transformed(image, index)
                return Sample(made, label, index, tuple(unreadable))
        return Sample(None, -1, index, tuple(unreadable))

    def _transformed(self, image: Image.Image, index: int) -> torch.Tensor:
        try:
            return self.part.transform(image)
        except Exception as error:  # timm's transforms may raise anything for invalid arguments
            file = file_of(self.part.dataset, index, self.part.name)
            raise DataError(
                f"data.transform: {file}: {type(error).__name__}: {error}. Found an image of {image.size} pixels."
            ) from error


# Possible keys of the model's input in a dict; all other entries are its label.
_INPUT_KEYS = ("image", "input", "pixel_values")


def _parts(sample: Mapping[Any, Any], index: int) -> tuple[Any, dict[Any, Any]]:
    """Input and label of a dict sample."""
    results = [key for key in _INPUT_KEYS if key in sample]
    if len(results) != 1:
        raise DataError(
            f"data: sample {index}: found a dict with the keys {', '.join(map(str, sample))}, expected one of "
            f"{', '.join(_INPUT_KEYS)} for the model's input. Rename it, or give (input, label)."
        )
    return sample[results[0]], {key: value for key, value in sample.items() if key != results[0]}


def _labels(labels: list[Any]) -> Any:
    """Labels of one batch: class indices as int64, others collated like in torch's loaders."""
    if all(isinstance(label, int) for label in labels):
        return torch.tensor(labels, dtype=torch.int64)
    try:
        return tree_map(lambda leaf: leaf.float() if _is_double(leaf) else leaf, default_collate(labels))
    except (TypeError, RuntimeError) as error:
        raise DataError(
            f"data.labels: found labels that cannot be joined to a batch: {error}. Expected numbers, tensors of one "
            "shape, or lists and dicts of these. Make them so in the data set."
        ) from error


def _is_double(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64


class Collated(NamedTuple):
    """A batch of the readable samples, and the files that could not be read."""

    batch: Batch
    unreadable: tuple[Unreadable, ...]


def collated(samples: Sequence[Sample]) -> Collated:
    """Collate samples to one batch, which is empty if none could be read."""
    inputs = [sample.input for sample in samples if sample.input is not None]
    read = [sample for sample in samples if sample.input is not None]
    shapes = sorted({tuple(made.shape) for made in inputs})
    if len(shapes) > 1:
        raise DataError(
            f"data: found samples of shapes {', '.join(map(str, shapes))}, expected all alike. Resize them in the "
            "data set, or give PIL images, which are resized here."
        )
    batch = Batch(
        torch.stack(inputs) if inputs else torch.empty(0),
        _labels([sample.label for sample in read]),
        torch.tensor([sample.number for sample in read], dtype=torch.int64),
    )
    return Collated(batch, tuple(one for sample in samples for one in sample.unreadable))
