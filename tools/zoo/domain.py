"""How far losslessness reaches for models whose code is hard to cut: `python -m tools.zoo.domain [names]`.

Each model is made from a small configuration with random weights, wrapped on one size, cut at random, and compared with
its gated model elsewhere: other batch, other size or length, training mode with gradients, after pickling, under
autocast; language models generate as well. Packages that are not installed are left out. One line of JSON for each.
"""

from __future__ import annotations

import argparse
import copy
import json
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

import prunegate
from prunegate.compaction import Side, Widely, gap
from prunegate.compaction.equivalence import difference, put_aside, run
from prunegate.groups import ExampleInputs

from .packages import PackageCase, case_of
from .packages.case import image, words


def _used(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The model after a forward, which may have changed its attributes."""

    def built() -> nn.Module:
        model = build()
        with torch.no_grad():
            model.eval()(torch.randn(1, 3, 64, 64))
        return model

    return built


def _ids_and_mask(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {**words(batch, length), "attention_mask": torch.ones(batch, length, dtype=torch.long)}


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, **arguments)

    return build


_HARD = """transformers/gpt2 transformers/mamba transformers/phi3 transformers/segformer transformers/mobilevit
    transformers/mpnet diffusers/unet2d-condition diffusers/autoencoder-kl spandrel/swinir ultralytics/yolov8n
    ultralytics/yolov8n-seg ultralytics/yolo11n smp/manet transformers/longformer transformers/rt-detr
    transformers/deberta-v2 transformers/mask2former transformers/levit pytorch_tabnet/tabnet""".split()
_GENERATES = frozenset(f"{name}{more}" for name in ("gpt2", "mamba", "phi3") for more in ("", " with mask"))


def _cases() -> dict[str, PackageCase]:
    """The hard ones of the packages' models, and some of them used otherwise."""
    cases = {name.partition("/")[2]: case_of(name) for name in _HARD}
    for name in ("gpt2", "phi3"):
        cases[f"{name} with mask"] = replace(cases[name], inputs=_ids_and_mask)
    cases["yolov8n used"] = replace(cases["yolov8n"], build=_used(cases["yolov8n"].build))
    cases["timm mobilevit"] = PackageCase(_timm("mobilevit_xxs"), image(), 64, 96)
    cases["timm levit"] = PackageCase(_timm("levit_128s"), image(), 224)
    return cases


@dataclass
class Row:
    """What was seen: relative differences by what was compared, or why nothing could be."""

    name: str
    dtype: str
    seconds: float = 0.0
    groups: int = 0
    macs_left: float = 0.0
    differences: dict[str, float | str] = field(default_factory=dict)
    fixed_up: dict[str, int] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    error: str = ""


def seen(name: str, case: PackageCase, dtype: torch.dtype) -> Row:
    """Wrap, cut and compare one model."""
    row = Row(name, str(dtype).removeprefix("torch."))
    try:
        torch.manual_seed(0)
        model = case.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter) * 0.02)
        model = _all_to(model, dtype)
        start = time.perf_counter()
        gated = prunegate.wrap(model, _typed(case.inputs(2, case.size), dtype))
        row.seconds = round(time.perf_counter() - start, 1)
        row.groups = len(gated.groups)
        row.limits = [str(limit) for limit in gated.limits]
        gated.set_masks(_masks(gated))
        result = prunegate.compact(gated)
        row.limits += result.certificate.not_checked
        row.macs_left = round(result.costs["macs"]["compact"] / max(result.costs["macs"]["dense"], 1), 3)
        row.fixed_up = {what: len(getattr(result.fix_ups, what)) for what in ("attributes", "resized", "replayed")}
        _compare(case, gated, result, dtype, row)
    except Exception as error:
        row.error = f"{type(error).__name__}: {str(error)[:400]}"
        if "-v" in sys.argv:
            traceback.print_exc()
    return row


def _all_to(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in a precision; also the tensors that it holds as plain attributes, which ``to`` does not know."""
    for module in model.to(dtype).modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(module, name, value.to(dtype))
    return model


def _typed(inputs: Any, dtype: torch.dtype) -> Any:
    return ExampleInputs.of(inputs).map(lambda t: t.to(dtype) if t.is_floating_point() else t)


def _masks(gated: prunegate.GatedModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for group in gated.groups:
        masks[group.name] = torch.rand(group.num_units, generator=generator) < 0.5
        masks[group.name][int(torch.randint(group.num_units, (), generator=generator))] = True
    return masks


def _compare(case: PackageCase, gated: Any, result: Any, dtype: torch.dtype, row: Row) -> None:
    kept = result.plan.tensors
    other = case.other or case.size
    places: dict[str, tuple[int, int, bool]] = {
        "other batch": (3, case.size, False),
        "other size": (2, other, False),
        "training": (2, case.size, True),
        "training, other": (3, other, True),
    }
    for what, (batch, size, training) in places.items():
        inputs = _typed(case.inputs(batch, size), dtype)
        sides = Side(gated, gated.model), Side.of(result.model)
        with put_aside(gated, result.model), Widely(dtype):
            try:
                expected = run(sides[0], inputs, training, gradients=True)
            except Exception as error:
                row.differences[what] = f"gated: {type(error).__name__}: {str(error)[:80]}"
                continue
            try:
                row.differences[what] = difference(expected, run(sides[1], inputs, training, True), kept).max_rel
            except Exception as error:
                row.differences[what] = f"{type(error).__name__}: {str(error)[:200]}"
    # What is limited to the traced size is copied and run in bfloat16 at that size: elsewhere it only refuses again.
    size = case.size if isinstance(row.differences["other size"], str) else other
    inputs = _typed(case.inputs(3, size), dtype)
    ways: dict[str, Callable[[], nn.Module]] = {
        "copied": lambda: copy.deepcopy(result.model),
        "pickled": lambda: pickle.loads(pickle.dumps(result.model)),
    }
    for what, again in ways.items():
        with put_aside(result.model):
            try:
                copied = again()  # before it is run: some libraries put hooks on a model that cannot be pickled
                one, two = (run(Side.of(model), inputs) for model in (result.model, copied))
                row.differences[what] = gap(one.outputs, two.outputs).max_rel
            except Exception as error:
                row.differences[what] = f"{type(error).__name__}: {str(error)[:200]}"
    if dtype is torch.float32:
        row.differences["autocast"] = _under_autocast(gated, result, inputs)
    if row.name in _GENERATES:
        row.differences["generate"] = _generated(gated, result)


def _under_autocast(gated: Any, result: Any, inputs: ExampleInputs) -> float | str:
    try:
        with torch.autocast("cpu", torch.bfloat16):
            one, other = (run(side, inputs) for side in (Side(gated, gated.model), Side.of(result.model)))
        return gap(one.outputs, other.outputs).max_rel
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def _generated(gated: Any, result: Any) -> float | str:
    """Difference of the logits, in float32, of greedy decoding with the cache from the gated model's without it."""
    try:
        ids, steps = torch.randint(5, 90, (2, 6)), 8
        with torch.no_grad():
            # Small configurations may say that no cache is used.
            found = result.model.eval().generate(
                ids, max_new_tokens=steps, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            whole = found.sequences
            expected = [gated.eval()(input_ids=whole[:, :length]).logits[:, -1] for length in range(6, 6 + steps)]
        return max(
            float((one - two).abs().max() / two.abs().max()) for one, two in zip(found.logits, expected, strict=True)
        )
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


_TOLD = 240  # characters of a limit
_COLUMNS = ("other batch", "other size", "training", "training, other", "pickled", "autocast", "generate")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown: relative differences, float64 and float32 side by side."""
    lines = [f"| model | dtype | groups | MACs left | wrap, s | fix-ups | {' | '.join(_COLUMNS)} | limits |",
             f"|---|---|---:|---:|---:|---|{'---|' * len(_COLUMNS)}---|"]  # fmt: skip
    for row in rows:
        cells = [row["name"], row["dtype"], str(row["groups"]), f"{row['macs_left']:.2f}", f"{row['seconds']:.0f}"]
        cells.append(", ".join(f"{count} {what}" for what, count in row["fixed_up"].items() if count) or "nothing")
        cells += [_cell(row["differences"].get(column)) for column in _COLUMNS]
        told = "; ".join(limit[:_TOLD] for limit in row["limits"]) or row["error"]
        lines.append(f"| {' | '.join(cells)} | {' '.join(told.replace('|', '/').split())} |")
    return "\n".join(lines)


def _cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return (
        value[:70].replace("|", "/")
        if isinstance(value, str)
        else f"{value:.0e}"
        if value not in (0, 1)
        else f"{value:.0f}"
    )


def main() -> None:
    """Print one row for each model and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models; all if none is named")
    parser.add_argument("--dtype", choices=("float64", "float32", "both"), default="both")
    parser.add_argument("-v", action="store_true", help="print tracebacks")
    parser.add_argument("--table", metavar="FILE", help="make a table of such lines instead")
    arguments = parser.parse_args()
    if arguments.table:
        with open(arguments.table) as file:
            print(table([json.loads(line) for line in file if line.strip()]))
        return
    dtypes = ("float64", "float32") if arguments.dtype == "both" else (arguments.dtype,)
    cases = _cases()
    for name in arguments.names or cases:
        for dtype in dtypes:
            print(json.dumps(vars(seen(name, cases[name], getattr(torch, dtype)))), flush=True)


if __name__ == "__main__":
    main()
