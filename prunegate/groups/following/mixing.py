"""Functions and layers of which the result at one channel may depend on others, or on which channels there are."""

from __future__ import annotations

from torch import nn

from prunegate.groups.following.maskable import MASKABLE

# By name, of torch, of `torch.nn.functional` or of tensors.
MIXING = MASKABLE | frozenset(
    """adaptive_avg_pool1d adaptive_max_pool1d argmax argmin argsort avg_pool1d channel_shuffle chunk corrcoef
    count_nonzero cov cross cummax cummin cumprod diff fft fft2 fftn flip fliplr glu histc ifft index_select
    instance_norm irfft kron kthvalue lp_pool1d max_pool1d median mode msort multi_head_attention_forward nanmean
    nanmedian nansum narrow outer pixel_shuffle pixel_unshuffle quantile renorm rfft rms_norm roll rot90
    searchsorted select sort std_mean tensor_split topk trace tril triu unbind unique""".split()
)

_MIXING_LAYERS = (
    nn.Softmax,
    nn.Softmin,
    nn.LogSoftmax,
    nn.Softmax2d,
    nn.MultiheadAttention,
    nn.GLU,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.AvgPool1d,
    nn.MaxPool1d,
    nn.CosineSimilarity,
    nn.Unflatten,
)


def is_mixing(layer: nn.Module) -> bool:
    """Whether a layer of torch looks across channels, or may, by the layout of its input."""
    return isinstance(layer, _MIXING_LAYERS)
