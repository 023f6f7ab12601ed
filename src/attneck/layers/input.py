"""What a layer says of an input that it cannot take, before some kernel says it in its own words."""

import torch
from torch import Tensor, nn

from attneck.errors import brief


def check_input(x: Tensor, channels: int, layer: nn.Module) -> None:
    """ValueError unless x is a batch of `channels`-channel maps [B, C, H, W] of a floating dtype.

    A batch without maps is welcome, a map without positions is not: it has no mean, and nothing to look at.
    Whether the dtype is the layer's, and where x is, PyTorch says.
    """
    if isinstance(x, torch.fx.Proxy):  # a tracer's, which has no shape yet
        return
    if not isinstance(x, Tensor):
        raise ValueError(f"the input is {brief(x)}: wanted a tensor [B, C, H, W] with C = {channels}")
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"the input has shape {list(x.shape)}, wanted [B, C, H, W] with C = {channels}; "
            f"build this {type(layer).__name__} with the channels of the map it stands on"
        )
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(
            f"the input has shape {list(x.shape)}: a map without positions; give H and W of 1 or more"
        )
    if not x.is_floating_point():
        raise ValueError(f"the input is of {x.dtype}: wanted numbers with a point; give x.float()")
