"""BAM's two branches as modules, by the paper (eq. 3 and 4) and by the published code, and how they are run.

Letters: B batch, C channels, H x W map, m = C // reduction.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from attneck.attention.operands import without_autocast

HALVES = (torch.bfloat16, torch.float16)


class SpatialBranch(nn.Sequential):
    """Layers in sequence, all but the first in the precision of their own weights, whatever autocast says.

    The first has nearly all of the work, and is autocast's. The branch ends in biased logits that vary little
    and a BatchNorm that magnifies what varies. Rounded to bfloat16 between the two, the variation is lost;
    and the bias, whose gradient is zero in exact arithmetic, takes a random walk that BatchNorm's running
    mean follows too late, so that evaluation goes wrong.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 1, H, W]."""
        return self.after_first(self[0](x))

    def after_first(self, x: Tensor) -> Tensor:
        """The first layer's result [B, m, H, W] -> [B, 1, H, W]."""
        _, *layers = self
        with without_autocast(x):
            for layer in layers:
                x = layer(in_dtype(x, _dtype(layer, x)))
        return x


def in_float32(branch: nn.Module, mean: Tensor) -> Tensor:
    """The channel branch of means [B, C] -> [B, C], in float32 or more, whatever autocast and weights are.

    It is a ten-thousandth of BAM's work, and its BatchNorm magnifies rounding as `SpatialBranch` says. Half
    precision stays for what another program keeps, and gives to the layers as they are called.
    """
    with without_autocast(mean):
        own = [*branch.named_parameters(), *branch.named_buffers()]
        narrow = {name: tensor for name, tensor in own if tensor.dtype in HALVES}
        # A trace takes a module's own weights only.
        if not narrow or torch.jit.is_tracing() or _kept_elsewhere(branch, mean):
            result: Tensor = branch(in_dtype(mean, _dtype(branch, mean)))
            return result
        wide = {name: tensor.float() for name, tensor in narrow.items()}
        result = functional_call(branch, wide, (mean.float(),))
        if any(layer.training for layer in branch.modules()):
            for name, buffer in branch.named_buffers():  # BatchNorm's running statistics
                if name in wide:
                    buffer.copy_(wide[name])
        return result


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in this precision; an exported graph would keep a cast that changes nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def check_batch(branch: nn.Module, values: int) -> None:
    """ValueError if a BatchNorm of the branch is to learn from one value a channel; it sees `values`."""
    if values != 1:
        return
    for layer in branch.modules():
        if isinstance(layer, _BatchNorm) and layer.training and not _shares_statistics(layer):
            raise ValueError(
                "BAM's BatchNorm got one value a channel (a batch of one) in training, which has no "
                "variance: give two images at a time (accumulating steps does not help), train several "
                "processes with torch.nn.SyncBatchNorm, or keep trained BatchNorms in .eval(), as a "
                "detector's freeze_norms=True does"
            )


class ChannelBranch(nn.Sequential):
    """Layers for [B, C]; a norm for maps, such as timm's for split batches, sees maps of one position."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C] -> [B, C]."""
        for layer in self:
            x = layer(x[:, :, None, None]).flatten(1) if isinstance(layer, nn.BatchNorm2d) else layer(x)
        return x


def paper_channel(channels: int, hidden: int) -> nn.Sequential:
    """Eq. 3 after the pooling: [B, C] -> [B, C]."""
    return ChannelBranch(
        OrderedDict(
            reduce=nn.Linear(channels, hidden),
            relu=nn.ReLU(),
            expand=nn.Linear(hidden, channels),
            norm=nn.BatchNorm1d(channels),
        )
    )


def paper_spatial(channels: int, hidden: int, dilation: int) -> SpatialBranch:
    """Eq. 4: [B, C, H, W] -> [B, 1, H, W]."""
    return SpatialBranch(
        OrderedDict(
            reduce=nn.Conv2d(channels, hidden, kernel_size=1),
            relu_0=nn.ReLU(),
            context_1=nn.Conv2d(hidden, hidden, kernel_size=3, padding=dilation, dilation=dilation),
            relu_1=nn.ReLU(),
            context_2=nn.Conv2d(hidden, hidden, kernel_size=3, padding=dilation, dilation=dilation),
            relu_2=nn.ReLU(),
            project=nn.Conv2d(hidden, 1, kernel_size=1),
            norm=nn.BatchNorm2d(1),
        )
    )


def official_channel(channels: int, hidden: int) -> nn.Sequential:
    """The published code's channel branch, by its names: [B, C] -> [B, C]."""
    layers = OrderedDict(
        gate_c_fc_0=nn.Linear(channels, hidden),
        gate_c_bn_1=nn.BatchNorm1d(hidden),
        gate_c_relu_1=nn.ReLU(),
        gate_c_fc_final=nn.Linear(hidden, channels),
    )
    return nn.Sequential(OrderedDict(gate_c=ChannelBranch(layers)))


def official_spatial(channels: int, hidden: int, dilation: int) -> nn.Sequential:
    """The published code's spatial branch, by its names: [B, C, H, W] -> [B, 1, H, W]."""
    layers = OrderedDict[str, nn.Module](
        gate_s_conv_reduce0=nn.Conv2d(channels, hidden, kernel_size=1),
        gate_s_bn_reduce0=nn.BatchNorm2d(hidden),
        gate_s_relu_reduce0=nn.ReLU(),
    )
    for i in range(2):
        layers[f"gate_s_conv_di_{i}"] = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
        layers[f"gate_s_bn_di_{i}"] = nn.BatchNorm2d(hidden)
        layers[f"gate_s_relu_di_{i}"] = nn.ReLU()
    layers["gate_s_conv_final"] = nn.Conv2d(hidden, 1, kernel_size=1)
    return nn.Sequential(OrderedDict(gate_s=SpatialBranch(layers)))


def _dtype(module: nn.Module, x: Tensor) -> torch.dtype:
    """That of its parameters, or x's where it has none."""
    for layer in module.modules():
        # Of a pruned layer `weight` is what the last call computed, in the precision of then.
        if (own := next(layer.parameters(recurse=False), None)) is not None:
            return own.dtype
        # In nn.DataParallel's replicas weights are plain attributes, and no module has parameters.
        if isinstance(weight := vars(layer).get("weight"), Tensor):
            return weight.dtype
    return x.dtype


def _kept_elsewhere(branch: nn.Module, x: Tensor) -> bool:
    """Whether its weights are not its own parameters, whole and where x is, or its layers have calls of their
    own: where it is sharded, offloaded or quantized, or a replica."""
    own = [*branch.parameters()]
    return (
        not own
        or any(hasattr(tensor, "__tensor_flatten__") or tensor.is_meta > x.is_meta for tensor in own)
        or any({"forward", "weight"} & vars(layer).keys() for layer in branch.modules())
    )


def _shares_statistics(layer: _BatchNorm) -> bool:
    """Whether this BatchNorm takes its statistics over more processes than this one."""
    distributed = torch.distributed
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d):  # anything else is some library's synchronised one
        return False
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size(getattr(layer, "process_group", None)) > 1
