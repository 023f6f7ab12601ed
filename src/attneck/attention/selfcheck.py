"""A kernel is checked on the spot, before it is trusted: a small case, against the plain form on the CPU.

The first use in a process of (kernel, dtype, head width, device) pays for it, later ones look it up. It runs
in a thread of its own, where nothing of the caller's is on: no dispatch mode, no fake tensors, no autocast,
no transform, no inference mode, no compiler. It draws from a generator of its own. No process waits for
another: where GPUs differ, each decides for itself, and the backends agree up to rounding. While a CUDA graph
is captured, or inside a backward pass, nothing can be checked, and only what was checked before is taken. A
kernel that leaves the CUDA context broken ends the process: nothing in it can catch that.
"""

import threading
import warnings
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from attneck.attention.backends import BACKENDS, Backend
from attneck.attention.cuda.sdpa import NoFusedKernelError, head_width
from attneck.attention.cuda.triton import KERNELS, constants
from attneck.attention.graph import apart, constant
from attneck.attention.operands import capability
from attneck.attention.plain import plain_attention_2d
from attneck.errors import is_out_of_memory

WHOLE, TOKEN = 2, 3
"""A kernel may err so many times as much as the plain form does in the same dtype, on the CPU: in a whole
tensor, and in its worst token or row, which goes by chance. Kernels that keep their sums in float32 err by
half as much as it does (results/gpu/attention.json)."""

ROOM = {torch.float32: 5e-3, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
"""Added to that: a quarter of the dtype's epsilon, as a table of a few rows may round luckily in the plain
form; in float32 room for products in TF32."""

OF_EACH_KIND = ((16, 16), (15, 17), (4, 128), (3, 130))
"""Maps that are checked where the size is not known: Triton's kernels are others with and without masks, and
where a part of one row is as many keys as they take at a time."""

NO_MEMORY = "there was no memory for its check"
PATIENCE = 1000
"""So many choices pass before what found no memory is tried again: a try empties the allocator's cache."""

FLASH_HEADS = (32, 64, 96, 128, 192, 256)
"""The widths of a head for which PyTorch's fused attention has kernels of their own."""


class Kernel(NamedTuple):
    """What is left out, if it fails."""

    name: str
    dtype: torch.dtype
    d: int
    device: torch.device


class Case(NamedTuple):
    """A small case of one kernel: what is compiled for it alone."""

    kernel: Kernel
    map_size: tuple[int, int]
    content: bool
    gradients: bool


_right: set[Case] = set()
_not_taken: dict[Case, str] = {}  # PyTorch says of its own that it has no kernel
_left_out: dict[Kernel, str] = {}
_waiting: dict[Case, int] = {}  # how often it is not asked about again, for there was no memory
_one_at_a_time = threading.Lock()


def first_right(
    names: tuple[str, ...],
    q: Tensor,
    dtype: torch.dtype,
    map_size: tuple[int, int],
    *,
    content: bool,
    gradients: bool,
) -> tuple[str, str, bool]:
    """The first of `names` that is right for queries [B, h, N, d] in `dtype`.

    Then what is wrong with those before it, and whether that will stay so.

    The last name is taken unchecked. Warns once of each kernel that fails.
    """
    d, wide = q.shape[3], head_width(q.shape[3], map_size, dtype, content)
    if torch.compiler.is_compiling():  # sizes may be symbols; what is compared with a number becomes one
        d = next(number for number in range(1, 257) if d == number)
        small: tuple[tuple[int, int], ...] = OF_EACH_KIND
    else:
        small = (_cut_alike(map_size, d, dtype, capability(q.device)),)
    wide = next((number for number in FLASH_HEADS if wide <= number), FLASH_HEADS[-1])
    return _first_right(names, q.device, dtype, d, small, wide, content, gradients)


def failures() -> int:
    """How many kernels are left out by now; a choice made before may be another since."""
    return len(_left_out)


@constant
def _first_right(
    names: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    d: int,
    small: tuple[tuple[int, int], ...],
    wide: int,
    content: bool,
    gradients: bool,
) -> tuple[str, str, bool]:
    said, failed, settled = "", [], True
    for name in names[:-1]:
        kernel = Kernel(name, dtype, d, device)
        known = kernel in _left_out
        if name == "sdpa":
            # The map whose head gets `wide`; an unordered sum is not to be had where PyTorch forbids it.
            sides = (2, wide - (d if content else 0) - 2)
            twice = gradients and not torch.are_deterministic_algorithms_enabled()
            cases = [Case(kernel, sides, content, twice)]
        else:
            cases = [Case(kernel, one, content, gradients) for one in small]
        what = next(filter(None, map(_wrong, cases)), "")
        if not what:
            break
        said += f"; not {name}: {what}"
        settled &= kernel in _left_out or cases[0] in _not_taken
        if kernel in _left_out and not known:
            failed.append((kernel, what))
    else:
        name = names[-1]
    for kernel, what in failed:
        warnings.warn(
            f"relative attention leaves out {kernel.name} for {kernel.dtype}, head width {kernel.d}, on "
            f"{_called(device)}: {what}; {name} is taken instead",
            RuntimeWarning,
            stacklevel=2,
        )
    return name, said, settled


def _wrong(case: Case) -> str:
    """What is wrong with a kernel, or nothing; it is run where that is not known."""
    kernel = case.kernel
    with _one_at_a_time:
        if what := _left_out.get(kernel) or _not_taken.get(case):
            return what
        if case in _right:
            return ""
        if what := _not_now(kernel.device):
            return what
        if _waiting.get(case, 0):
            _waiting[case] -= 1
            return NO_MEMORY
        try:
            outcome = apart(partial(_errors, case))
        except NoFusedKernelError:
            _not_taken[case] = "PyTorch has no fused kernel for it on this GPU"
            return _not_taken[case]
        except Exception as error:
            if is_out_of_memory(error):
                _waiting[case] = PATIENCE
                return NO_MEMORY
            line = (str(error).strip().splitlines() or [""])[0]
            _left_out[kernel] = f"it fails with {type(error).__name__}: {line[:100]}"
            return _left_out[kernel]
        for name, (off, most) in outcome.items():
            if not off <= most:  # NaN is far
                _left_out[kernel] = f"a small case is wrong, {name} by {off:.2g} of its size"
                return _left_out[kernel]
        _right.add(case)
        return ""


def _errors(case: Case) -> dict[str, tuple[float, float]]:
    """The kernel's error and the most it may be: of the result, of each gradient, of a token of each."""
    d, (H, W) = case.kernel.d, case.map_size
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)

    tokens = drawn(1, H * W, 3, 2, d) * torch.tensor([d**-0.5, 1.0, 1.0], device="cpu").view(3, 1, 1)
    given = [tokens, drawn(2 * H - 1, d), drawn(2 * W - 1, d), drawn(1, 2, H * W, d)]
    given = [tensor.to(case.kernel.dtype) for tensor in given]
    device = case.kernel.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        found = _results(BACKENDS[case.kernel.name], [tensor.to(device) for tensor in given], case)
    plain = _results(plain_attention_2d, given, case)
    exact = _results(plain_attention_2d, [tensor.double() for tensor in given], case)
    errors, room = {}, ROOM[case.kernel.dtype]
    for name, right in exact.items():
        whole, token = _off(found[name].cpu().double(), right)
        plain_whole, plain_token = _off(plain[name].double(), right)
        errors[name] = whole, WHOLE * plain_whole + room
        errors[f"a token of {name}"] = token, TOKEN * plain_token + room
    return errors


def _off(tensor: Tensor, right: Tensor) -> tuple[float, float]:
    """The error's norm over that of what is right, and the worst token's over their root mean square."""
    error, size = (tensor - right).norm(dim=-1), right.norm(dim=-1)
    return float(error.norm() / size.norm()), float(error.max() / size.square().mean().sqrt())


def _results(attend: Backend, given: list[Tensor], case: Case) -> dict[str, Tensor]:
    """The result and its gradients; q, k and v lie as a layer has them, views of one product's tokens."""
    tokens, rel_h, rel_w, direction = given  # [1, N, 3, h, d], both tables, [1, h, N, d]
    q, k, v = (one.transpose(1, 2) for one in tokens.unbind(2))  # [1, h, N, d]
    leaves = {"q": q, "k": k, "v": v, "rel_h": rel_h, "rel_w": rel_w}
    if not case.content:
        del leaves["k"]
    leaves = {name: leaf.detach().requires_grad_(case.gradients) for name, leaf in leaves.items()}
    out = attend(
        leaves["q"], leaves.get("k"), leaves["v"], leaves["rel_h"], leaves["rel_w"], case.map_size, False
    )
    if not case.gradients:
        return {"the result": out.detach()}
    gradients = torch.autograd.grad(out, list(leaves.values()), direction)
    return {"the result": out.detach()} | {
        f"the gradient of {name}": one for name, one in zip(leaves, gradients, strict=True)
    }


def _not_now(device: torch.device) -> str:
    """Why nothing can be run for real at this moment, or nothing."""
    if torch._C._current_graph_task_id() != -1:
        return "it was not checked before a backward pass"  # whose thread a check would wait for
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "it was not checked before a CUDA graph was captured"
    return ""


def _called(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


@lru_cache(maxsize=1024)
def _cut_alike(
    map_size: tuple[int, int], d: int, dtype: torch.dtype, capability: tuple[int, int]
) -> tuple[int, int]:
    """A small map for which Triton compiles the same kernels: of the same patches, its sides as divisible."""

    def kind(H: int, W: int) -> tuple[object, ...]:
        compiled = (constants(kernel, (H, W), d, dtype, capability) for kernel in KERNELS)
        return *compiled, *(number % 16 == 0 for number in (H, W, H * W)), H == 1, W == 1

    wanted = kind(*map_size)
    sides = sorted(
        ((H, W) for H in range(1, 1025) for W in range(128 // H + 1, 1024 // H + 1)),
        key=lambda side: side[0] * side[1],
    )
    return next((small for small in sides if kind(*small) == wanted), (16, 16))
