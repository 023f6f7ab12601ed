"""Networks in which every branch has an effect."""

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

HIDDEN = ("reduce.bias", "context_1.bias", "context_2.bias", "fc1.bias")


def awake(model: M) -> M:
    """The network, changed in place: no norm is at 0, and no hidden layer of a BAM or SE is dead.

    ResNets start the last norm of each branch at 0: nothing inside a branch then reaches the output, and all
    gradients in there are 0. In narrow networks BAM and SE have a hidden unit or two, which ReLU may cut off.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
    for name, parameter in model.named_parameters():
        if name.endswith(HIDDEN):
            nn.init.ones_(parameter)
    return model
