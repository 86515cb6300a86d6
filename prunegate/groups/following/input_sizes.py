"""The same inputs at other sizes: more samples, and other lengths or image sizes.

Nothing says what a dimension of an input means. Candidates are made for the usual layouts; whether the model accepts
one is found by running it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from prunegate.groups.following.inputs import ExampleInputs
from prunegate.groups.torch_workarounds.draws import Dropped

# Maps a tensor to its position dimensions: pixels, tokens, audio samples.
_Layout: TypeAlias = Callable[[torch.Tensor], tuple[int, ...]]


@dataclass(frozen=True)
class Variation:
    """How inputs differ from the example inputs, in size only.

    Attributes:
        doubled: Every sample is repeated once.
        layout: The assumed layout of positions, a name in `_LAYOUTS`; None if their number does not change.
        growth: How their number grows, ``"steps"`` or ``"twice"``.
        dropped: What is dropped where the model's code decides by a single random number; None leaves it to chance.
        other: Number of the other call that is taken in place of the example inputs; None for these.
    """

    doubled: bool = False
    layout: str | None = None
    growth: str = "steps"
    other: int | None = None
    dropped: Dropped | None = None

    def of(self, inputs: ExampleInputs) -> ExampleInputs:
        """The varied example inputs. Values are those of the example, repeated."""
        inputs = inputs.alone() if self.other is None else inputs.others[self.other]
        if self.layout is not None:
            inputs = _resized(inputs, _LAYOUTS[self.layout], _GROWTHS[self.growth])
        return inputs.doubled() if self.doubled else inputs

    def __str__(self) -> str:
        parts = ["twice the samples"] if self.doubled else []
        parts += ["another size"] if self.layout is not None else []
        parts += [f"other_calls[{self.other}]"] if self.other is not None else []
        return " and ".join(parts) or "as given"


def other_sizes(inputs: ExampleInputs) -> list[Variation]:
    """Variations that change the number of positions, the most likely to be accepted first."""
    seen = {_shapes(inputs)}
    results = []
    for growth in _GROWTHS:
        for layout in _LAYOUTS:
            variation = Variation(layout=layout, growth=growth)
            shapes = _shapes(variation.of(inputs.map(lambda tensor: tensor.to("meta"))))
            if shapes not in seen:
                seen.add(shapes)
                results.append(variation)
    return results


def sizes_of(inputs: ExampleInputs) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The number of samples, and all other sizes."""
    return inputs.batch_size(), tuple(shape[1:] for shape in _shapes(inputs))


def _shapes(inputs: ExampleInputs) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in inputs.tensors())


def _images_and_tokens(tensor: torch.Tensor) -> tuple[int, ...]:
    if tensor.dim() >= 4:
        return tuple(range(2, tensor.dim()))
    if tensor.dim() == 3 and not tensor.is_floating_point():
        return (1, 2)
    return (1,) if tensor.dim() >= 2 else ()


def _channels_first(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(2, tensor.dim())) if tensor.dim() >= 3 else _images_and_tokens(tensor)


def _images(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(2, tensor.dim())) if tensor.dim() >= 4 else ()


def _channels_last(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(1, tensor.dim() - 1)) if tensor.dim() >= 4 else ()


def _by_steps(size: int, place: int) -> int:
    """The size plus a few steps, of which it seems to be a multiple; with unequal sides for images."""
    return size + min(size & -size, 32) * (2 + place)


def _twice(size: int, place: int) -> int:
    return 2 * size


_LAYOUTS: dict[str, _Layout] = {
    "images and tokens": _images_and_tokens,
    "channels first": _channels_first,
    "images": _images,
    "channels last": _channels_last,
}
_GROWTHS = {"steps": _by_steps, "twice": _twice}


def _resized(inputs: ExampleInputs, layout: _Layout, grown: Callable[[int, int], int]) -> ExampleInputs:
    """The resized inputs; sizes that are equal in several inputs (token ids and their mask) remain equal."""
    new: dict[tuple[int, int], int] = {}
    for tensor in inputs.tensors():
        for place, dim in enumerate(layout(tensor)):
            size = tensor.shape[dim]
            if size > 1:
                new.setdefault((size, place), grown(size, place))

    def change(tensor: torch.Tensor) -> torch.Tensor:
        for place, dim in enumerate(layout(tensor)):
            size = tensor.shape[dim]
            if size > 1:
                repeated = torch.arange(new[size, place], device=tensor.device) % size
                tensor = tensor.index_select(dim, repeated)
        return tensor

    return inputs.map(change)
