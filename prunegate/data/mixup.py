"""timm's mixup and cutmix with a constant number of operations per batch, on the images' device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from timm.data.mixup import Mixup, cutmix_bbox_and_lam

from prunegate.data.moving import moved

Rows = npt.NDArray[np.float32]


class WholeBatchMixup(Mixup):  # type: ignore[misc]  # timm has no types
    """timm's `Mixup`, bit for bit, but without a loop over images in the modes ``elem`` and ``pair``.

    timm's loop launches thousands of kernels per batch on a GPU, and synchronises when it copies the shares.
    """

    def _mix_elem(self, x: torch.Tensor) -> torch.Tensor:
        return _mix(x, self._rows(x, len(x)))

    def _mix_pair(self, x: torch.Tensor) -> torch.Tensor:
        rows = self._rows(x, len(x) // 2)
        return _mix(x, np.concatenate((rows, rows[::-1])))

    def _rows(self, x: torch.Tensor, count: int) -> Rows:
        """The parameters of each image, drawn in timm's order; see `_mix`."""
        shares, cuts = self._params_per_elem(count)
        rows = np.zeros((count, 6), dtype=np.float32)
        rows[:, 0] = np.where(cuts, 1.0, shares)
        for at in np.flatnonzero(cuts & (shares != 1.0)):
            box, shares[at] = cutmix_bbox_and_lam(
                x.shape[1:], shares[at], ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam
            )
            rows[at, 2:] = box
        rows[:, 1] = shares
        return rows


def _mix(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Mix images in place with those from the other end of the batch; return the shares of their own labels, (n, 1).

    Args:
        x: Images, (n, channels, height, width).
        rows: For each image, its share in blending, the share of its label, and the top, bottom, left and right of the
            pasted rectangle, (n, 6).
    """
    columns = moved(torch.from_numpy(np.ascontiguousarray(rows)), x.device)[:, :, None, None, None]
    share, label_share, top, bottom, left, right = columns.unbind(1)
    other = x.flip(0)
    blended = torch.where(share == 1.0, x, x * share + other * (1.0 - share))
    at_row = torch.arange(x.shape[2], device=x.device)[:, None]
    at_column = torch.arange(x.shape[3], device=x.device)
    inside = (at_row >= top) & (at_row < bottom) & (at_column >= left) & (at_column < right)
    x.copy_(torch.where(inside, other, blended))
    return label_share.reshape(-1, 1).to(x.dtype)
