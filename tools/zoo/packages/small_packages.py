"""Models of packages that have one or two."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from .case import PackageCase, image, sequence, series, token_ids


def _efficientnet() -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name(
        "efficientnet-b0", num_classes=10, width_coefficient=0.5, depth_coefficient=0.3, image_size=64
    )
    return model


def _facenet() -> nn.Module:
    """With one of the blocks that it repeats."""
    from facenet_pytorch import InceptionResnetV1

    model = InceptionResnetV1(pretrained=None)
    for name in ("repeat_1", "repeat_2", "repeat_3"):
        setattr(model, name, getattr(model, name)[:1])
    made: nn.Module = model
    return made


def _conformer() -> nn.Module:
    from conformer import Conformer

    return Conformer(dim=64, depth=2, dim_head=12, heads=4, ff_mult=2, conv_kernel_size=7)


def _tcn() -> nn.Module:
    from pytorch_tcn import TCN

    return TCN(num_inputs=12, num_channels=[32, 40, 48], kernel_size=3, use_skip_connections=True, output_projection=5)


def _ft_transformer() -> nn.Module:
    from rtdl_revisiting_models import FTTransformer

    return FTTransformer(
        n_cont_features=6, cat_cardinalities=[4, 5], d_out=3, n_blocks=2, d_block=64, attention_n_heads=4,
        attention_dropout=0.0, ffn_d_hidden=88, ffn_d_hidden_multiplier=None, ffn_dropout=0.0, residual_dropout=0.0,
    )  # fmt: skip


def _rtdl_resnet() -> nn.Module:
    from rtdl_revisiting_models import ResNet

    return ResNet(
        d_in=12, d_out=3, n_blocks=2, d_block=64, d_hidden=88, d_hidden_multiplier=None, dropout1=0.0, dropout2=0.0
    )


def _segment_anything() -> nn.Module:
    """Its encoder, which is most of it."""
    from segment_anything.modeling import ImageEncoderViT

    model: nn.Module = ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=64, depth=2, num_heads=4, mlp_ratio=2, out_chans=32, use_rel_pos=True,
        window_size=3, global_attn_indexes=(1,),
    )  # fmt: skip
    return model


def _sentence_transformer() -> nn.Module:
    """A small BERT with mean pooling, made from files on the way."""
    import transformers
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.models import Pooling, Transformer
    except ImportError:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=88,
        max_position_embeddings=64,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        transformers.BertModel(config).save_pretrained(folder)
        letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(94))]
        Path(folder, "vocab.txt").write_text("\n".join(letters))
        transformers.BertTokenizerFast(vocab=str(Path(folder, "vocab.txt"))).save_pretrained(folder)
        words = Transformer(folder)
    model: nn.Module = SentenceTransformer(modules=[words, Pooling(64)], device="cpu")
    return model


def _features(batch: int, length: int) -> tuple[dict[str, torch.Tensor]]:
    ids = token_ids(batch, length)
    return ({"input_ids": ids, "attention_mask": torch.ones_like(ids)},)


def _tabnet() -> nn.Module:
    from pytorch_tabnet.tab_network import TabNet

    model: nn.Module = TabNet(12, 3, n_d=16, n_a=16, group_attention_matrix=torch.eye(12))
    return model


def _x_transformer() -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=64, depth=2, heads=4, attn_dim_head=12, rotary_pos_emb=True, ff_glu=True)
    model: nn.Module = TransformerWrapper(num_tokens=99, max_seq_len=40, attn_layers=layers)
    return model


def _columns(batch: int, _: int) -> torch.Tensor:
    return torch.randn(batch, 12)


def _mixed_columns(batch: int, _: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 6), torch.randint(0, 4, (batch, 2))


CASES: dict[str, PackageCase] = {
    "efficientnet_pytorch/b0": PackageCase(_efficientnet, image(), 64, 96),
    "facenet_pytorch/inception-resnet": PackageCase(_facenet, image(), 96, 128),
    "conformer/conformer": PackageCase(_conformer, series(64), 14, 22),
    "pytorch_tcn/tcn": PackageCase(_tcn, sequence(12), 20, 32),
    "rtdl/ft-transformer": PackageCase(_ft_transformer, _mixed_columns, 1),
    "rtdl/resnet": PackageCase(_rtdl_resnet, _columns, 1),
    "segment_anything/encoder": PackageCase(_segment_anything, image(), 64),
    "sentence_transformers/bert": PackageCase(_sentence_transformer, _features, 11, 17),
    "pytorch_tabnet/tabnet": PackageCase(_tabnet, _columns, 1),
    "x_transformers/decoder": PackageCase(_x_transformer, token_ids, 11, 17),
}
