"""The copy for questions about shapes has no storage and no hooks, and the model stays as it is."""

import copy
import threading
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_torch
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from attneck.hub import save
from attneck.layers.meta import GLOBAL_HOOKS, HOOKS, meta_copy, without_global_hooks
from attneck.measure import count
from attneck.surgery import attend, insert_attention_block, insert_bam, insert_se

CALLS = {
    "count": lambda model: count(model, 64),
    "insert_bam": lambda model: insert_bam(model, reduction=4, image_size=64),
    "insert_se": lambda model: insert_se(model, reduction=4, image_size=64),
    "attend": lambda model: attend(model, image_size=64),
    "insert_attention_block": lambda model: insert_attention_block(model, image_size=64),
}


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, (1, 1, 2, 1), channels=(16, 16, 16, 32), num_classes=5
    )


class Locked:
    """Somebody's object whose method is a hook, that captures, reads values, and cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(args)
        for leaf in torch.utils._pytree.tree_leaves(args):
            if isinstance(leaf, Tensor):
                leaf.sum().item()


def register_all(module: nn.Module, hook: Any) -> None:
    module.register_forward_hook(hook)
    module.register_forward_hook(hook, with_kwargs=True, always_call=True)
    module.register_forward_pre_hook(hook)
    module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    module.register_full_backward_hook(hook)
    module.register_full_backward_pre_hook(hook)
    module.register_state_dict_post_hook(hook)
    module.register_state_dict_pre_hook(hook)
    module.register_load_state_dict_pre_hook(hook)
    module.register_load_state_dict_post_hook(hook)


def hooks_of(model: nn.Module) -> dict[str, dict[str, dict[int, Any]]]:
    return {
        name: {table: dict(vars(module)[table]) for table in HOOKS} for name, module in model.named_modules()
    }


def test_all_tables_are_known() -> None:
    assert len(HOOKS) == 11
    assert len(GLOBAL_HOOKS) == 9
    hooked = nn.Linear(1, 1)
    register_all(hooked, Locked())
    assert all(vars(hooked)[table] for table in HOOKS)


@pytest.mark.parametrize("call", CALLS)
def test_the_user_s_hooks_are_neither_called_nor_lost(call: str) -> None:
    model, hook = resnet(), Locked()
    plain = CALLS[call](copy.deepcopy(model))
    report = getattr(plain, "report", None)
    replaced = {change.name for change in report.changes if change.replaced} if report else set()
    for name, module in model.named_modules():
        if name not in replaced:  # whose hooks would be lost: tests/surgery/test_attend.py
            register_all(module, hook)
    before = hooks_of(model)
    result = CALLS[call](model)
    assert hook.seen == []
    after = hooks_of(model)
    assert all(after[name] == tables for name, tables in before.items() if name not in replaced)
    assert getattr(result, "report", result) == (report or plain)


@pytest.mark.parametrize("call", CALLS)
def test_nor_are_those_for_all_modules(call: str) -> None:
    model, hook = resnet(), Locked()
    handles = [
        of_torch.register_module_forward_hook(hook),
        of_torch.register_module_forward_hook(hook, with_kwargs=True, always_call=True),
        of_torch.register_module_forward_pre_hook(hook),
        of_torch.register_module_full_backward_hook(hook),
        of_torch.register_module_full_backward_pre_hook(hook),
    ]
    try:
        before = [dict(table) for table in GLOBAL_HOOKS]
        CALLS[call](model)
        assert [dict(table) for table in GLOBAL_HOOKS] == before
        assert hook.seen == []
        with pytest.raises(ZeroDivisionError), without_global_hooks():
            raise ZeroDivisionError
        assert [dict(table) for table in GLOBAL_HOOKS] == before
    finally:
        for handle in handles:
            handle.remove()


def weighted(kind: str) -> nn.Module:
    model = resnet()
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            match kind:
                case "weight_norm":
                    weight_norm(module)
                case "spectral_norm":
                    spectral_norm(module)
                case "pruning":
                    prune.l1_unstructured(module, "weight", 0.5)
                case "parametrization":
                    parametrizations.weight_norm(module)
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "pruning", "parametrization"])
def test_weights_that_a_hook_computes_are_in_the_copy(kind: str) -> None:
    model = weighted(kind)
    assert count(model, 64).madds == count(resnet(), 64).madds
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = model.eval()(x)
        assert len(insert_bam(model, reduction=4, image_size=64).report.changes) == 3
        assert torch.equal(model(x), want)


def test_the_copy_is_of_shapes_alone() -> None:
    model = resnet()
    register_all(model.layer1, Locked())
    copied = meta_copy(model)
    assert all(tensor.is_meta for tensor in copied.state_dict().values())
    assert not any(vars(module)[table] for module in copied.modules() for table in HOOKS)
    assert all(vars(model.layer1)[table] for table in HOOKS)
    copied.register_forward_hook(Locked())  # each module of the copy has tables of its own
    assert not copied.layer1._forward_hooks


class Quantized(Tensor):
    """A weight of a class of its own, which has no copy without storage."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty_like:
            raise NotImplementedError("no empty_like\nof this class")
        return super().__torch_function__(func, types, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """A quantizer's class has its numbers in other tensors."""
        return [], None


def test_weights_of_a_quantizer_s_class_are_a_line() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Quantized))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"NotImplementedError: no empty_like.* before it is quantized"):
        count(model, 8)
    with pytest.raises(ValueError, match=r"0\.weight is a Quantized and no plain tensor"):
        save(model, "x.safetensors")


def test_what_cannot_be_copied_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model.lock = threading.Lock()
    with pytest.raises(
        ValueError, match=r"no copy can be made of this Sequential to look at .TypeError: cannot"
    ):
        count(model, 8)
