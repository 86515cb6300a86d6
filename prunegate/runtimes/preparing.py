"""Preparing one model for one runtime: a call to be timed, or an error with the reason why there is none."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegate.compaction import gap, outputs_of
from prunegate.errors import BenchError, ExportError, first_line
from prunegate.exporting import export_model
from prunegate.groups import ExampleInputs, copy_with
from prunegate.measuring import weight_bytes
from prunegate.runtimes.inputs import converted, have_layout
from prunegate.runtimes.setting import PRECISIONS, Setting

# Largest relative difference of a fused model's outputs from the original's, in float32.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Prepared:
    """A call of one model.

    Attributes:
        weight_bytes: Of its weights in memory; for ONNX Runtime of its file.
        in_dispatcher: Whether all its operations pass torch's dispatcher, so that its memory can be counted on a CPU.
    """

    call: Callable[[], object]
    weight_bytes: int
    in_dispatcher: bool = False


class Preparer:
    """Prepares models; a model is exported to ONNX once for all batch sizes, where its code allows that.

    Args:
        folder: For temporary files.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._folder, self._device = folder, device
        self._files: dict[tuple[str, int | None], Path | ExportError] = {}

    def prepare(self, name: str, model: nn.Module, inputs: ExampleInputs, setting: Setting) -> Prepared:
        """A model's call on inputs in one setting; the model is not modified.

        Raises:
            BenchError: It cannot be run so; other errors come from the model's code, torch or the runtime.
        """
        dtype, last = PRECISIONS[setting.precision], setting.layout == "channels_last"
        if last and not have_layout(inputs):
            raise BenchError("channels_last: the inputs are no images or volumes, so they have no channels to put last")
        if setting.runtime == "onnxruntime":
            return self._onnx(name, model, inputs, setting)
        if setting.runtime == "fused":
            model = _fused(model, inputs)
        model = copy_with(model).eval().to(self._device, dtype)
        if last:
            _put_channels_last(model)
        inputs = converted(inputs, dtype, self._device, last)
        run: Callable[..., object] = model
        if setting.runtime == "compiled":
            run = torch.compile(model, dynamic=False)
        return Prepared(
            lambda: run(*inputs.args, **inputs.kwargs), weight_bytes(model), setting.runtime in ("eager", "fused")
        )

    def _onnx(self, name: str, model: nn.Module, inputs: ExampleInputs, setting: Setting) -> Prepared:
        if setting.layout == "channels_last":
            raise BenchError("onnxruntime: chooses layouts by itself; see the row with contiguous inputs")
        if self._device != "cpu":
            raise BenchError("onnxruntime: is measured on the CPU only; use --device cpu")
        if setting.precision != "float32":
            raise BenchError("onnxruntime: is measured in float32 only, which its kernels on the CPU compute in")
        if importlib.util.find_spec("onnxruntime") is None:
            raise BenchError("onnxruntime: is not installed; pip install 'prunegate[onnx]'")
        import onnxruntime

        inputs = converted(inputs, torch.float32, "cpu", False)
        path = self._exported(name, model, inputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = setting.threads, 1
        options.log_severity_level = 3
        # Threads that go on spinning after a call would slow down the model whose turn is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        given: dict[str, Any] = dict(zip(names, inputs.tensors(), strict=False))
        if len(names) != len(inputs.tensors()):  # the model ignores some
            given = {name: inputs.kwargs[name] for name in names}
        feed = {name: tensor.numpy() for name, tensor in given.items()}
        return Prepared(lambda: session.run(None, feed), path.stat().st_size)

    def _exported(self, name: str, model: nn.Module, inputs: ExampleInputs) -> Path:
        """The ONNX file for any batch size, or else for that of the inputs."""
        for batch_size in (None, inputs.batch_size()):
            key = name, batch_size
            if key not in self._files:
                path, single = self._folder / f"{len(self._files)}.onnx", copy_with(model).eval().float().cpu()
                try:
                    export_model(single, inputs, path, "onnx", dynamic_batch=batch_size is None)
                    self._files[key] = path
                except ExportError as error:
                    self._files[key] = error
            result = self._files[key]
            if isinstance(result, Path):
                return result
        assert isinstance(result, ExportError)
        raise result


def _put_channels_last(model: nn.Module) -> None:
    """As `Module.to(memory_format=...)`, for convolutions over images and volumes at once."""
    for tensor in model.parameters():
        if tensor.dim() in (4, 5):
            last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
            tensor.data = tensor.data.contiguous(memory_format=last)


def _fused(model: nn.Module, inputs: ExampleInputs) -> nn.Module:
    """The model with BatchNorm folded into the layers before, by torch's own utility.

    Raises:
        BenchError: torch cannot trace the model, finds nothing to fuse, or fuses it wrongly.
    """
    from torch.fx.experimental.optimization import fuse

    original = copy_with(model).eval().float()
    try:
        fused = fuse(original)
    except Exception as error:  # symbolic tracing runs the model's own code on proxies, and may raise anything
        raise BenchError(
            f"fused: torch.fx cannot trace the model: {type(error).__name__}: {first_line(error)}"
        ) from error
    if len(_norms(fused)) == len(_norms(original)):
        raise BenchError("fused: torch found no convolution or linear layer followed by a BatchNorm of its own")
    single = converted(inputs, torch.float32, "cpu", False)
    with torch.no_grad():
        apart = gap(outputs_of(original.cpu(), single), outputs_of(fused.cpu(), single)).max_rel
    if not apart <= _TOLERANCE:
        raise BenchError(f"fused: the outputs differ by {apart:.1e} (relative), expected at most {_TOLERANCE:g}")
    return fused


def _norms(model: nn.Module) -> list[nn.Module]:
    """The norms that the model calls; the fused ones stay in its modules, but not in its graph."""
    if isinstance(model, torch.fx.GraphModule):
        called = {str(node.target) for node in model.graph.nodes if node.op == "call_module"}
        modules = [model.get_submodule(name) for name in sorted(called)]
    else:
        modules = list(model.modules())
    return [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
