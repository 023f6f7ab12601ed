"""How `torch.fx` records a layer: as one call of it, whichever tracer is at work."""

from typing import cast

from torch import Tensor, fx, nn


def recorded(layer: nn.Module, x: fx.Proxy) -> Tensor:
    """A node that calls `layer` on the tracer's x: what fx does with layers of torch.nn itself.

    The layer stays what it is in the graph: its result, its memory and its hooks are its own. Tracers know
    leaves by their class or by a list, which plain `torch.fx.symbolic_trace` takes from nobody. So the layer
    says it.

    Raises:
        ValueError: the layer is all that is traced, and so has no name to be called by.
    """
    tracer = cast(fx.Tracer, x.tracer)
    path = tracer.path_of_module(layer)
    if not path:
        raise ValueError(
            f"torch.fx records {type(layer).__name__} as one call inside a network: trace the network, or "
            "torch.nn.Sequential(layer)"
        )
    return cast(Tensor, tracer.create_proxy("call_module", path, (x,), {}))
