"""The inputs that all models of a benchmark are run on."""

from __future__ import annotations

import torch

from prunegate.groups import ExampleInputs

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def of_batch(inputs: ExampleInputs, count: int) -> ExampleInputs:
    """The inputs with ``count`` samples: the first ones, or all of them repeatedly."""
    present = inputs.batch_size()
    places = torch.arange(count) % present
    return inputs.map(lambda t: t[places] if t.dim() > 0 and t.shape[0] == present else t)


def converted(inputs: ExampleInputs, dtype: torch.dtype, device: str, channels_last: bool) -> ExampleInputs:
    """Floating-point inputs in a precision, all of them on a device; images with channels last if asked for."""

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        last = _LAYOUTS.get(tensor.dim()) if channels_last else None
        return tensor if last is None else tensor.contiguous(memory_format=last)

    return inputs.map(convert)


def have_layout(inputs: ExampleInputs) -> bool:
    """Whether some input has channels that could come last."""
    return any(tensor.dim() in _LAYOUTS and tensor.is_floating_point() for tensor in inputs.tensors())


def described(inputs: ExampleInputs) -> str:
    """The shape of one sample of every input, such as 3×224×224."""
    present = inputs.batch_size()
    shapes = [t.shape[1:] if t.dim() and t.shape[0] == present else t.shape for t in inputs.tensors()]
    return ", ".join("×".join(map(str, shape)) or "a number" for shape in shapes)
