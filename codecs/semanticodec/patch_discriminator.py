"""PatchGAN: tells patches of real mel spectrograms from reconstructed ones, trained with a hinge.

Dims: B batch, T mel frames, F mel bins.
Source: Isola et al., arXiv:1611.07004, with the hinge and the adaptive weight of Esser et al., arXiv:2012.09841, as the
published autoencoder uses them. Deviation: group norms in place of batch norms, so that no item depends on another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 8
LARGEST_WEIGHT = 1e4


class PatchDiscriminator(nn.Module):
    """One score per patch.

    Args:
        width: Channels behind the first layer; double in each of the next two.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for narrow, wide, stride in ((widths[0], widths[1], 2), (widths[1], widths[2], 1)):
            layers += [nn.Conv2d(narrow, wide, 4, stride=stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(NORM_GROUPS, wide), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[2], 1, 4, padding=1))

    def forward(self, mel: Tensor) -> Tensor:
        """(B, 1, T, F) -> scores (B, 1, T', F'); above 0 means real."""
        return self.layers(mel)  # type: ignore[no-any-return]


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the discriminator from its scores."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def balanced_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor, share: float) -> Tensor:
    """Weight that makes the adversarial gradient at tensor `last` a `share` of the reconstruction's, scalar."""
    wanted, found = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)
    )
    return (share * wanted / (found + 1e-4)).clamp(0, LARGEST_WEIGHT).detach()
