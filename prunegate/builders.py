"""Building dense models by their names in timm, torchvision and prunegate, never with a download.

A checkpoint names its builder, and the file may be untrusted. So the name has to be one that the installed library
lists, and arguments that download or read anything are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunegate import cifar_resnet
from prunegate.errors import ModelNameError, nearest
from prunegate.without_data import drop_data, with_little_data, without_data, without_parameters

LIBRARIES = ("timm", "torchvision", "prunegate")
# Arguments with which the libraries download or read weights, code or configuration.
_REFUSED = frozenset(
    """pretrained weights weights_backbone checkpoint_path pretrained_cfg pretrained_cfg_overlay cache_dir
    pretrained_strict scriptable exportable""".split()
)
_REFUSED_PREFIX = ("pretrained", "weights", "checkpoint")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Builder:
    """How to build one dense model.

    Attributes:
        library: ``"timm"``, ``"torchvision"`` or ``"prunegate"``.
        name: A name that the library lists.
        arguments: Keyword arguments, plain values or lists of them.
    """

    library: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, arguments: Mapping[str, Any] | None = None) -> Builder:
        """From ``"timm/resnet18"`` and keyword arguments.

        Raises:
            ModelNameError: An unknown library or name (the nearest are shown), or a refused argument.
        """
        library, slash, name = text.partition("/")
        if not slash or library not in LIBRARIES:
            near = [f"{lib}/{n}" for lib in LIBRARIES for n in nearest(text.rpartition("/")[2], _names(lib), 2)]
            raise ModelNameError(
                f"model name: found {text!r}, expected timm/<name>, torchvision/<name> or prunegate/<name>. "
                f"Nearest: {', '.join(near) or 'none'}."
            )
        names = _names(library)
        if name not in names:
            near = [f"{library}/{n}" for n in nearest(name, names)]
            raise ModelNameError(
                f"model name: {library} has no model {name!r}. Nearest: {', '.join(near) or 'none'}. "
                f"{library}'s list_models() shows them all."
            )
        arguments = dict(arguments or {})
        for key, value in arguments.items():
            _check_argument(text, key, value)
        return cls(library, name, arguments)

    @property
    def full_name(self) -> str:
        return f"{self.library}/{self.name}"

    def build(self) -> nn.Module:
        """The dense model with freshly initialised weights.

        Raises:
            ModelNameError: The library does not accept the arguments.
        """
        try:
            if self.library == "timm":
                import timm

                model = timm.create_model(self.name, pretrained=False, **self.arguments)
            elif self.library == "prunegate":
                model = cifar_resnet.build(self.name, **self.arguments)
            else:
                model = _build_torchvision(self.name, dict(self.arguments))
        except Exception as error:  # a foreign constructor given foreign arguments may raise anything
            given = ", ".join(f"{k}={v!r}" for k, v in self.arguments.items()) or "no arguments"
            raise ModelNameError(
                f"{self.full_name}: cannot be built with {given}: {type(error).__name__}: {error}. "
                "Arguments are those of the model's own constructor."
            ) from error
        if not isinstance(model, nn.Module):
            raise ModelNameError(f"{self.full_name}: built a {type(model).__name__}, expected a module.")
        return model

    def on_meta(self, most_parameters: int) -> nn.Module:
        """The dense model with all its tensors on the meta device, which takes no memory.

        Constructors that read values of their new tensors get real ones if these are small.

        Args:
            most_parameters: Construction stops if the model registers several times more than this.

        Raises:
            ModelNameError: The library does not accept the arguments, or the model is too large.
        """
        with torch.random.fork_rng(devices=[]):
            try:
                with without_data(), _counting(most_parameters):
                    return self.build()
            except ModelNameError as error:
                if not isinstance(error.__cause__, _NEEDS_VALUES):
                    raise
            with with_little_data(), _counting(most_parameters):
                model = self.build()
        drop_data(model)
        return model

    def skeleton(self) -> nn.Module:
        """The dense model with its parameters on the meta device: nothing is initialised, buffers are real.

        The global random state is not changed.
        """
        with torch.random.fork_rng(devices=[]), without_parameters():
            return self.build()

    def zeroed(self) -> nn.Module:
        """The dense model with all parameters zero, fast to build, for inspecting its structure only."""
        model = self.skeleton()
        kept = [value for module in model.modules() for value in (*vars(module).values(), *module._buffers.values())]
        if any(isinstance(value, torch.Tensor) and value.is_meta for value in kept):
            return self.build()  # its constructor stores a tensor derived from a parameter
        made: dict[int, nn.Parameter] = {}
        for name, parameter in list(model.named_parameters(remove_duplicate=False)):
            owner, _, attribute = name.rpartition(".")
            zeros = nn.Parameter(
                torch.zeros(parameter.shape, dtype=parameter.dtype), requires_grad=parameter.requires_grad
            )
            model.get_submodule(owner)._parameters[attribute] = made.setdefault(id(parameter), zeros)
        return model

    def as_dict(self) -> dict[str, Any]:
        return {"library": self.library, "name": self.name, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, data: Any) -> Builder:
        """Read what `as_dict` wrote, trusting nothing.

        Raises:
            ValueError: Another form than expected.
            ModelNameError: An unknown name or a refused argument.
        """
        if not isinstance(data, dict) or set(data) != {"library", "name", "arguments"}:
            raise ValueError("builder: expected an object with library, name and arguments")
        library, name, arguments = data["library"], data["name"], data["arguments"]
        if not isinstance(library, str) or not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError("builder: expected texts for library and name and an object for arguments")
        for key, value in arguments.items():
            _check_stored(key, value)
        return cls.parse(f"{library}/{name}", arguments)


def input_shape(builder: Builder, model: nn.Module) -> tuple[int, ...]:
    """The usual shape of one sample of a model: (channels, height, width).

    For video models: (channels, frames, height, width).
    """
    if builder.library == "timm":
        config = getattr(model, "pretrained_cfg", {})
        config = config if isinstance(config, dict) else vars(config)
        channels, height, width = config.get("input_size") or (3, 224, 224)
        size = builder.arguments.get("img_size")
        if size is not None:
            height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return int(builder.arguments.get("in_chans", channels)), int(height), int(width)
    if builder.library == "prunegate":
        return int(builder.arguments.get("in_chans", 3)), 32, 32
    from torchvision.models import get_model_builder

    if ".video." in get_model_builder(builder.name).__module__:
        return (3, 16, 224, 224)
    return (3, 299, 299) if builder.name == "inception_v3" else (3, 224, 224)


def _names(library: str) -> set[str]:
    if library == "timm":
        import timm

        return set(timm.list_models())
    if library == "prunegate":
        return set(cifar_resnet.list_models())
    from torchvision.models import list_models

    return set(list_models())


def _check_argument(model: str, key: str, value: Any) -> None:
    if key in _REFUSED or key.startswith(_REFUSED_PREFIX):
        raise ModelNameError(
            f"{model}: argument {key!r} is refused. Models are built without downloading or reading anything. "
            "Load weights into the model yourself."
        )
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(v, _PLAIN) for v in values):
        raise ModelNameError(
            f"{model}: argument {key!r}: found {type(value).__name__}, expected a plain value or a list of them."
        )
    if any(isinstance(v, str) and any(mark in v for mark in "/\\:") for v in values):
        raise ModelNameError(
            f"{model}: argument {key!r}: found {value!r}, which looks like a path or address. "
            "Models are built without reading anything."
        )


# Largest number that a file may pass as an argument; image sizes, depths and numbers of classes are far smaller.
_LARGEST_NUMBER = 1 << 20
_LONGEST = 256
# The errors of torch if a constructor reads a value of a tensor without data.
_NEEDS_VALUES = (RuntimeError, NotImplementedError)
# A constructor may create more parameters and modules than it keeps: this many, plus a multiple of the model's number
# of tensors. timm's and torchvision's models need far less (at most 1.8 and 3.3 times).
_SPARE = 256
_TIMES = {"parameters": 3, "modules": 8}


def _check_stored(key: str, value: Any) -> None:
    """Refuse arguments that would make a constructor run forever."""
    values = value if isinstance(value, list) else [value]
    if len(values) > _LONGEST:
        raise ValueError(f"builder.arguments.{key}: found a list of {len(values)}, expected at most {_LONGEST} entries")
    for entry in values:
        if isinstance(entry, str) and len(entry) > _LONGEST:
            raise ValueError(f"builder.arguments.{key}: found a text of {len(entry)} characters")
        if isinstance(entry, (int, float)) and not abs(entry) <= _LARGEST_NUMBER:
            raise ValueError(f"builder.arguments.{key}: found {entry!r:.40}, expected at most {_LARGEST_NUMBER}")


@contextlib.contextmanager
def _counting(most: int) -> Iterator[None]:
    """Stop a constructor that creates far more parameters or modules than a model of ``most`` tensors has."""
    register, begin = nn.Module.register_parameter, nn.Module.__init__
    counts = dict.fromkeys(_TIMES, 0)

    def count(what: str) -> None:
        counts[what] += 1
        if counts[what] > _SPARE + _TIMES[what] * most:
            raise OverflowError(f"it has more than {counts[what] - 1} {what}, many times more than the file holds")

    def counted(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        count("parameters")
        register(module, name, parameter)

    def begun(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        count("modules")
        begin(module, *args, **kwargs)

    setattr(nn.Module, register.__name__, counted)
    setattr(nn.Module, begin.__name__, begun)
    try:
        yield
    finally:
        setattr(nn.Module, register.__name__, register)
        setattr(nn.Module, begin.__name__, begin)


def _build_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    import inspect

    from torchvision.models import get_model, get_model_builder

    accepted = inspect.signature(get_model_builder(name)).parameters
    if "weights_backbone" in accepted:
        arguments["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        arguments.setdefault("init_weights", True)  # these two warn if it is not set
    return get_model(name, weights=None, **arguments)  # type: ignore[no-any-return]
