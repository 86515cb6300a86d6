"""Makes a gated model provide what the Hugging Face `Trainer` needs from a model.

The Trainer reads the signature of the model's class to find its columns and labels, reads a few attributes, and writes
the state dict as safetensors. All three are supported here for any architecture.
"""

from __future__ import annotations

import inspect
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from prunegate.wrapping import GatedModel

# Attributes of the model that the Trainer and its reporters read, if they exist.
_LOOKED_UP = (
    "config",
    "main_input_name",
    "accepts_loss_kwargs",
    "loss_type",
    "_keys_to_ignore_on_save",
    "activation_checkpointing_enable",
    "gradient_checkpointing_enable",
    "num_parameters",
)


def answer_trainer(gated: GatedModel) -> None:
    """Prepare ``gated`` for the Trainer, in place; a second call does nothing.

    It gets its own class, as parametrised modules do in torch, with the name and the signature of the model's class,
    which the Trainer uses.
    """
    if _answers(gated):
        return
    dense_class = type(gated.model)

    def forward(self: GatedModel, *args: Any, **kwargs: Any) -> Any:
        return GatedModel.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(dense_class.forward)  # type: ignore[attr-defined]
    # Statically, as some are properties that warn.
    results = [name for name in _LOOKED_UP if inspect.getattr_static(gated.model, name, None) is not None]
    body: dict[str, Any] = {name: property(attrgetter(f"model.{name}")) for name in results}
    gated.__class__ = type(dense_class.__name__, (type(gated),), {**body, "forward": forward, "_answers_trainer": True})
    gated.register_state_dict_post_hook(_tied_once)  # type: ignore[no-untyped-call]
    gated.register_load_state_dict_pre_hook(_untied)  # type: ignore[no-untyped-call]


def _answers(gated: GatedModel) -> bool:
    return bool(getattr(type(gated), "_answers_trainer", False))


def _place(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """A key that is equal for tied tensors: their address and layout. None for tensors without values."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.data_ptr() else None


def _tied_once(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Keep tied tensors in a state dict only once, as safetensors requires."""
    seen = set()
    for name in [name for name in state if name.startswith(prefix)]:
        if (place := _place(state[name])) is not None:
            if place in seen:
                del state[name]
            seen.add(place)


def _untied(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Undo `_tied_once`; other state dicts are unchanged."""
    own = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    saved = {_place(tensor): state[prefix + name] for name, tensor in own.items() if prefix + name in state}
    for name, tensor in own.items():
        if prefix + name not in state and (place := _place(tensor)) is not None and place in saved:
            state[prefix + name] = saved[place]
