"""The models of a benchmark: from compact files, folders of runs, and names of dense models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegate.builders import Builder, input_shape
from prunegate.checkpoint import Document, load, read_document
from prunegate.errors import BenchError, ModelNameError
from prunegate.groups import ExampleInputs
from prunegate.own_code import OwnBuilder, is_own
from prunegate.recipe import load_recipe
from prunegate.recipe.folder import CHECKPOINT, DENSE, RECIPE
from prunegate.recipe.load import dense_builder
from prunegate.runtimes import described
from prunegate.weight_files import load_weights

AnyBuilder = Builder | OwnBuilder


@dataclass(frozen=True)
class Contender:
    """One model to measure, in eval mode.

    Attributes:
        name: As it is shown, unique in a benchmark.
        source: The file or model name that it comes from.
        dense: Name of its dense model; None if it is dense itself.
        inputs: Those it was pruned with, if its file tells them.
    """

    name: str
    source: str
    model: nn.Module
    dense: str | None = None
    inputs: ExampleInputs | None = None


@dataclass
class Gathering:
    """Builds the models named by the user, each dense model once.

    Args:
        maker: Makes the dense model of files that hold a class of the user's own.
        arguments: Of models given by name.
        input_size: Shape of one sample; by default that of the first file, or of the first model by name.
    """

    maker: OwnBuilder | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    input_size: tuple[int, ...] | None = None
    _made: list[Contender] = field(default_factory=list)
    _dense: dict[str, tuple[AnyBuilder, Contender]] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Add a compact file and its dense model, all models of a run, or a dense model by its name.

        Raises:
            BenchError: There is no such file, run or model, or a file needs ``maker``.
            CheckpointError: A file cannot be read.
            ModelNameError: The model cannot be built.
        """
        path = Path(text)
        if path.is_dir():
            self._add_run(path)
        elif path.is_file() or path.suffix == ".safetensors":
            self._add_file(path, None, None, path.stem)
        else:
            self._add_dense(self._named(text), None, text)

    def finish(self) -> tuple[list[Contender], ExampleInputs, list[str]]:
        """The models, the inputs for all of them, and remarks about inputs.

        Raises:
            BenchError: The inputs are unknown.
        """
        inputs, notes = self._inputs(), []
        size = described(inputs)
        for one in self._made:
            if one.inputs is not None and described(one.inputs) != size:
                notes.append(f"{one.name} was pruned with inputs of {described(one.inputs)}.")
        return self._made, inputs, notes

    # ---------------------------------------------------------------------------------------------

    def _add_run(self, folder: Path) -> None:
        files = [*sorted(folder.glob("compact-*.safetensors"), key=_fraction, reverse=True), folder / CHECKPOINT]
        if not files[-1].is_file():
            raise BenchError(
                f"{folder}: contains no {CHECKPOINT}, expected the folder of a finished run. Run a recipe first: "
                "prunegate run recipes/quickstart.yaml."
            )
        weights = folder / DENSE
        for file in files:
            name = f"{folder.resolve().name}/{file.stem}"
            self._add_file(file, folder / RECIPE, weights if weights.is_file() else None, name)

    def _add_file(self, path: Path, recipe: Path | None, weights: Path | None, name: str) -> None:
        document = read_document(path)
        origin = document.builder or self.maker
        if origin is None and recipe is not None and recipe.is_file():
            # A recipe that names the user's own code is the user's own; a checkpoint never names code.
            origin = dense_builder(load_recipe(recipe).model)
        if origin is None:
            raise BenchError(
                f"{path}: holds a {document.class_name}, a class of your own, and code is never loaded from a file. "
                "Use --model module:function, which makes the dense model."
            )
        model = load(path, model=origin.build if isinstance(origin, OwnBuilder) else None)
        dense = self._add_dense(origin, weights, str(path))
        self._append(Contender(name, str(path), model, dense.name, _stored_inputs(document)))

    def _add_dense(self, builder: AnyBuilder, weights: Path | None, source: str) -> Contender:
        key = f"{builder.full_name} {sorted(builder.arguments.items())}"
        if key not in self._dense:
            model = builder.build().eval()
            if weights is not None:
                load_weights(model, weights, source, BenchError)
            self._dense[key] = builder, self._append(Contender(builder.full_name, builder.full_name, model))
        return self._dense[key][1]

    def _named(self, text: str) -> AnyBuilder:
        if is_own(text):
            return OwnBuilder(text, self.arguments)
        try:
            return Builder.parse(text, self.arguments)
        except ModelNameError as error:
            raise BenchError(f"{text}: is no file and no folder; as a model: {error}") from error

    def _append(self, one: Contender) -> Contender:
        taken = {other.name for other in self._made}
        if one.name in taken and one.source == one.name:  # the same dense model with other arguments
            one = replace(one, name=next(n for i in range(2, 1000) if (n := f"{one.name} ({i})") not in taken))
        elif one.name in taken:
            if any(other.source == one.source for other in self._made):
                raise BenchError(f"{one.source}: is given twice, expected each once. Leave one out.")
            one = replace(one, name=one.source)
        self._made.append(one)
        return one

    def _inputs(self) -> ExampleInputs:
        if self.input_size is not None:
            return _noise(self.input_size)
        stored = next((one.inputs for one in self._made if one.inputs is not None), None)
        if stored is not None:
            return stored
        for builder, contender in self._dense.values():
            if isinstance(builder, Builder):
                return _noise(input_shape(builder, contender.model))
        raise BenchError(
            "--input-size: is missing, expected the shape of one sample, such as 3 224 224: neither a file nor a "
            "model's name tells it."
        )


def _fraction(path: Path) -> float:
    """Sorts the files of a run: ``compact-0.5`` by its number."""
    try:
        return float(path.stem.partition("-")[2])
    except ValueError:
        return 0.0


def _stored_inputs(document: Document) -> ExampleInputs | None:
    if document.fingerprint is None:
        return None
    return document.fingerprint.example_inputs().map(lambda t: t.float() if t.is_floating_point() else t)


def _noise(size: Sequence[int]) -> ExampleInputs:
    return ExampleInputs.of(torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))
