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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import prunegate
from prunegate.compaction import Side, Widely, gap
from prunegate.compaction.equivalence import difference, put_aside, run
from prunegate.groups import ExampleInputs


@dataclass
class Case:
    """A model and its inputs.

    Attributes:
        inputs: Makes inputs for so many samples at a size.
        size, other: A size to wrap at, and another one; equal where the model takes one alone.
        generates: Whether it is a language model.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Any]
    size: int
    other: int
    generates: bool = False


def _hf(name: str, cls: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        made = getattr(transformers, f"{name}Config")(**config)
        model: nn.Module = getattr(transformers, cls)(made)
        return model

    return build


def _ids(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(5, 90, (batch, length))}


def _ids_and_mask(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {**_ids(batch, length), "attention_mask": torch.ones(batch, length, dtype=torch.long)}


def _image(channels: int = 3) -> Callable[[int, int], torch.Tensor]:
    return lambda batch, size: torch.randn(batch, channels, size, size)


def _pixels(batch: int, size: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, size, size)}


_SMALL = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def _unet2d_condition() -> nn.Module:
    import diffusers

    model: nn.Module = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), cross_attention_dim=24, attention_head_dim=8, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
    )  # fmt: skip
    return model


def _autoencoder() -> nn.Module:
    import diffusers

    model: nn.Module = diffusers.AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return model


def _yolo(name: str, used: bool = False) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from ultralytics import YOLO

        model: nn.Module = YOLO(f"{name}.yaml", verbose=False).model
        if used:
            with torch.no_grad():
                model.eval()(torch.randn(1, 3, 64, 64))
        return model

    return build


def _smp(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        model: nn.Module = getattr(smp, name)("resnet18", encoder_weights=None)
        return model

    return build


def _swinir() -> nn.Module:
    from spandrel.architectures.SwinIR import SwinIR

    model: nn.Module = SwinIR(
        img_size=16, window_size=8, depths=[2, 2], embed_dim=36, num_heads=[6, 6], mlp_ratio=2, upscale=2,
        upsampler="pixelshuffledirect",
    )  # fmt: skip
    return model


def _tabnet() -> nn.Module:
    from pytorch_tabnet.tab_network import TabNet

    model: nn.Module = TabNet(12, 3, group_attention_matrix=torch.eye(12))
    return model


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, **arguments)

    return build


def _rt_detr() -> nn.Module:
    import transformers

    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[32, 48, 64], encoder_layers=1,
        encoder_ffn_dim=48, encoder_attention_heads=4, d_model=32, num_queries=20, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=48, decoder_layers=2, decoder_attention_heads=4, num_denoising=0,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config)


def _mask2former() -> nn.Module:
    import transformers

    swin = transformers.SwinConfig(embed_dim=24, depths=[1, 1, 1, 1], num_heads=[2, 2, 4, 4], window_size=4,
                                   out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=48,
        encoder_layers=1, decoder_layers=2, num_attention_heads=4, dim_feedforward=48, num_queries=10,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


CASES: dict[str, Case] = {
    "gpt2": Case(_hf("GPT2", "GPT2LMHeadModel", vocab_size=99, n_embd=48, n_layer=2, n_head=4), _ids, 11, 17, True),
    "gpt2 with mask": Case(
        _hf("GPT2", "GPT2LMHeadModel", vocab_size=99, n_embd=48, n_layer=2, n_head=4), _ids_and_mask, 11, 17, True
    ),
    "mamba": Case(
        _hf("Mamba", "MambaForCausalLM", vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=8),
        _ids, 11, 17, True,
    ),
    "phi3": Case(
        _hf("Phi3", "Phi3ForCausalLM", **_SMALL, intermediate_size=64, num_key_value_heads=2, pad_token_id=0),
        _ids, 11, 17, True,
    ),
    "phi3 with mask": Case(
        _hf("Phi3", "Phi3ForCausalLM", **_SMALL, intermediate_size=64, num_key_value_heads=2, pad_token_id=0),
        _ids_and_mask, 11, 17, True,
    ),
    "segformer": Case(
        _hf("Segformer", "SegformerForSemanticSegmentation", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=32),
        _pixels, 64, 96,
    ),
    "mobilevit": Case(
        _hf("MobileViT", "MobileViTForImageClassification", hidden_sizes=[24, 32, 48],
            neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64], image_size=64),
        _pixels, 64, 96,
    ),
    "timm mobilevit": Case(_timm("mobilevit_xxs"), _image(), 64, 96),
    "mpnet": Case(_hf("MPNet", "MPNetForMaskedLM", **_SMALL, intermediate_size=64), _ids, 11, 17),
    "unet2d condition": Case(
        _unet2d_condition,
        lambda b, s: (torch.randn(b, 4, s, s), torch.full((b,), 5), torch.randn(b, 7, 24)), 16, 24,
    ),
    "autoencoder kl": Case(_autoencoder, _image(), 32, 48),
    "swinir": Case(_swinir, _image(), 16, 24),
    "yolov8n": Case(_yolo("yolov8n"), _image(), 64, 96),
    "yolov8n used": Case(_yolo("yolov8n", used=True), _image(), 64, 96),
    "yolov8n-seg": Case(_yolo("yolov8n-seg"), _image(), 64, 96),
    "yolo11n": Case(_yolo("yolo11n"), _image(), 64, 96),
    "yolo11n-seg": Case(_yolo("yolo11n-seg"), _image(), 64, 96),
    "smp manet": Case(_smp("MAnet"), _image(), 64, 96),
    "longformer": Case(
        _hf("Longformer", "LongformerForMaskedLM", **_SMALL, intermediate_size=64, attention_window=8,
            max_position_embeddings=64, pad_token_id=1),
        _ids, 16, 24,
    ),
    "rt-detr": Case(_rt_detr, _pixels, 64, 96),
    "deberta-v2": Case(
        _hf("DebertaV2", "DebertaV2ForMaskedLM", **_SMALL, intermediate_size=64, relative_attention=True,
            position_buckets=8, pos_att_type=["p2c", "c2p"]),
        _ids, 11, 17,
    ),
    "mask2former": Case(_mask2former, _pixels, 64, 96),
    "levit": Case(
        _hf("Levit", "LevitForImageClassification", hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4],
            depths=[1, 1, 1], key_dim=[8, 8, 8], image_size=64, drop_path_rate=0),
        _pixels, 64, 64,
    ),
    "timm levit": Case(_timm("levit_128s"), _image(), 224, 224),
    "tabnet": Case(_tabnet, lambda b, _: torch.randn(b, 12), 1, 1),
}  # fmt: skip


@dataclass
class Row:
    """What was seen: relative differences by what was compared, or why nothing could be."""

    name: str
    dtype: str
    seconds: float = 0.0
    groups: int = 0
    macs_left: float = 0.0
    differences: dict[str, float | str] = field(default_factory=dict)
    mended: dict[str, int] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    error: str = ""


def seen(name: str, case: Case, dtype: torch.dtype) -> Row:
    """Wrap, cut and compare one model."""
    row = Row(name, str(dtype).removeprefix("torch."))
    try:
        torch.manual_seed(0)
        model = case.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter) * 0.02)
        model = model.to(dtype)
        start = time.perf_counter()
        gated = prunegate.wrap(model, _typed(case.inputs(2, case.size), dtype))
        row.seconds = round(time.perf_counter() - start, 1)
        row.groups = len(gated.groups)
        row.limits = [str(limit) for limit in gated.limits]
        gated.set_masks(_masks(gated))
        result = prunegate.compact(gated)
        row.limits += result.certificate.not_checked
        row.macs_left = round(result.costs["macs"]["compact"] / max(result.costs["macs"]["dense"], 1), 3)
        row.mended = {what: len(getattr(result.mending, what)) for what in ("attributes", "resized", "replayed")}
        _compare(case, gated, result, dtype, row)
    except Exception as error:
        row.error = f"{type(error).__name__}: {str(error)[:400]}"
        if "-v" in sys.argv:
            traceback.print_exc()
    return row


def _typed(inputs: Any, dtype: torch.dtype) -> Any:
    return ExampleInputs.of(inputs).map(lambda t: t.to(dtype) if t.is_floating_point() else t)


def _masks(gated: prunegate.GatedModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for group in gated.groups:
        masks[group.name] = torch.rand(group.num_units, generator=generator) < 0.5
        masks[group.name][int(torch.randint(group.num_units, (), generator=generator))] = True
    return masks


def _compare(case: Case, gated: Any, result: Any, dtype: torch.dtype, row: Row) -> None:
    kept = result.plan.tensors
    places: dict[str, tuple[int, int, bool]] = {
        "other batch": (3, case.size, False),
        "other size": (2, case.other, False),
        "training": (2, case.size, True),
        "training, other": (3, case.other, True),
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
    inputs = _typed(case.inputs(3, case.other), dtype)
    ways: dict[str, Callable[[], nn.Module]] = {
        "copied": lambda: copy.deepcopy(result.model),
        "pickled": lambda: pickle.loads(pickle.dumps(result.model)),
    }
    for what, again in ways.items():
        with put_aside(result.model):
            try:
                other = again()  # before it is run: some libraries put hooks on a model that cannot be pickled
                one, two = (run(Side.of(model), inputs) for model in (result.model, other))
                row.differences[what] = gap(one.outputs, two.outputs).max_rel
            except Exception as error:
                row.differences[what] = f"{type(error).__name__}: {str(error)[:200]}"
    if dtype is torch.float32:
        row.differences["autocast"] = _under_autocast(gated, result, inputs)
    if case.generates:
        row.differences["generate"] = _generated(gated, result)


def _under_autocast(gated: Any, result: Any, inputs: ExampleInputs) -> float | str:
    try:
        with torch.autocast("cpu", torch.bfloat16):
            one, other = (run(side, inputs) for side in (Side(gated, gated.model), Side.of(result.model)))
        return gap(one.outputs, other.outputs).max_rel
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def _generated(gated: Any, result: Any) -> float | str:
    """1.0 if greedy decoding with the cache gives what decoding anew at each step gives."""
    try:
        ids = torch.randint(5, 90, (2, 6))
        with torch.no_grad():
            found = result.model.eval().generate(
                ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None
            )
            for _ in range(8):
                ids = torch.cat([ids, gated.eval()(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        return float((found[:, : ids.shape[1]] == ids).double().mean())
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


_COLUMNS = ("other batch", "other size", "training", "training, other", "pickled", "autocast", "generate")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown: relative differences, float64 and float32 side by side."""
    lines = [f"| model | dtype | groups | MACs left | wrap, s | mended | {' | '.join(_COLUMNS)} | limits |",
             f"|---|---|---:|---:|---:|---|{'---|' * len(_COLUMNS)}---|"]  # fmt: skip
    for row in rows:
        cells = [row["name"], row["dtype"], str(row["groups"]), f"{row['macs_left']:.2f}", f"{row['seconds']:.0f}"]
        cells.append(", ".join(f"{count} {what}" for what, count in row["mended"].items() if count) or "nothing")
        cells += [_cell(row["differences"].get(column)) for column in _COLUMNS]
        lines.append(f"| {' | '.join(cells)} | {'; '.join(row['limits']) or row['error']} |".replace("\n", " "))
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
    for name in arguments.names or CASES:
        for dtype in dtypes:
            print(json.dumps(vars(seen(name, CASES[name], getattr(torch, dtype)))), flush=True)


if __name__ == "__main__":
    main()
