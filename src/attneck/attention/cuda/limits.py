"""Up to which map each backend is taken on CUDA: one table, which a measurement on a GPU corrects.

Those of 9.0 were measured on an H100 (results/gpu; bfloat16, heads of 128, batch 8). There Triton's kernels
take two fifths of the time of `sdpa` at 64x64, and a tenth or less at 128x128. Below 20x20 a training step
waits for Python and not for the GPU, and `plain` has the fewest calls: BoTNet-50's at 224 pixels was 14 %
longer with the kernels at 14x14.

The rest is a rule. `plain` is first where N x N logits are small, `sdpa` next (with head width 128 a map of
64x64 makes 128 + 64 + 64 = 256, the widest head that flash attention takes), then `triton`.
"""

from typing import Literal, NamedTuple

Direction = Literal["forward", "training"]


class Limits(NamedTuple):
    """The sides of a square map at which the backend changes; other maps as `cuda/choice.py` says."""

    plain_below: int
    """The plain form serves maps of fewer positions than this side squared."""
    sdpa_up_to: int
    """PyTorch's fused attention serves maps up to this side; Triton's kernels serve what is larger."""


LIMITS: dict[tuple[str, Direction], Limits] = {
    ("9.0", "forward"): Limits(plain_below=7, sdpa_up_to=0),
    ("9.0", "training"): Limits(plain_below=20, sdpa_up_to=0),
    ("any", "forward"): Limits(plain_below=20, sdpa_up_to=64),
    ("any", "training"): Limits(plain_below=20, sdpa_up_to=64),
}
"""By compute capability, such as "9.0", or "any" for those without a row; and by direction."""


def limits(capability: tuple[int, int], direction: Direction) -> Limits:
    """The row of a GPU of this compute capability."""
    major, minor = capability
    return LIMITS.get((f"{major}.{minor}", direction), LIMITS["any", direction])
