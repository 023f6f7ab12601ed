"""The compiled passes: as near to the oracle as PyTorch's operators, and left out where they are not."""

import importlib
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attneck.attention import reference, relative_attention_2d
from attneck.attention.cpu import build, choice, passes, products, tile_passes, tiles
from attneck.layers import MHSA2d

operator = importlib.import_module("attneck.attention.cpu.operator")

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process; what a test chooses is forgotten after it."""
    monkeypatch.setattr(passes, "_passes", None)
    monkeypatch.delenv(passes.VARIABLE, raising=False)


@pytest.fixture
def builds_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The cache is empty, and nothing is known of the compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (passes.trouble, build.library):
        function.cache_clear()
    yield
    for function in (passes.trouble, build.library):
        function.cache_clear()


def errors(
    map_size: tuple[int, int], pool: bool, dtype: torch.dtype, heads: int = 3, largest: float = 1.0
) -> tuple[list[float], list[torch.Tensor]]:
    """Norm of the error over the norm, or over 1: of the result and of the five gradients; and these."""
    torch.manual_seed(0)
    H, W = map_size
    q, k, v = torch.randn(3, 2, heads, H * W, 8).unbind()
    tables = torch.randn(2 * H - 1, 8) / 3, torch.randn(2 * W - 1, 8) / 3
    given = [tensor.to(dtype) for tensor in (q * largest / 3, k, v, *tables)]
    direction, both = None, []
    for wide in (False, True):
        leaves = [(tensor.double() if wide else tensor).clone().requires_grad_() for tensor in given]
        attend = reference.relative_attention_2d if wide else relative_attention_2d
        out = attend(*leaves, map_size, pool)
        direction = torch.randn(out.shape).to(dtype) if direction is None else direction
        both.append([out.detach(), *torch.autograd.grad(out, leaves, direction.to(out.dtype))])
    got, want = both
    pairs = zip(got, want, strict=True)
    return [float((a.double() - b).norm() / b.norm().clamp(min=1)) for a, b in pairs], got


@needs_compiler
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("pool", [False, True])
def test_fused_they_give_the_oracle_s_numbers_on_any_map_in_any_tiles(
    keep: bool, pool: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes.set_passes("fused")
    monkeypatch.setattr(operator, "emulated", lambda dtype: False)  # bfloat16 itself, however slow
    if not keep:
        for module in (operator, tiles):
            monkeypatch.setattr(module, "KEEP", 0)
        monkeypatch.setattr(tiles, "LOGITS", 1)  # the fewest rows
    for map_size in ((1, 1), (1, 9), (7, 1), (5, 3), (8, 16), (9, 17), (14, 14)):
        for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 1.2e-2)):
            found, got = errors(map_size, pool, dtype)
            assert all(tensor.isfinite().all() for tensor in got)
            assert max(found) < bound, (map_size, dtype, found)
            again = errors(map_size, pool, dtype)[1]
            assert all(map(torch.equal, got, again))


@needs_compiler
def test_fused_they_are_safe_from_overflow_and_tell_nan() -> None:
    passes.set_passes("fused")
    found, got = errors((5, 9), False, torch.float32, largest=1e4)
    assert all(tensor.isfinite().all() for tensor in got)
    assert found[0] < 1e-4  # logits in the tens of thousands are rounded to a hundredth
    q, k, v = torch.randn(3, 1, 1, 45, 4).unbind()
    tables = torch.zeros(9, 4), torch.zeros(17, 4)
    k[0, 0, 7] = float("nan")
    assert relative_attention_2d(q, k, v, *tables, (5, 9)).isnan().all()


@needs_compiler
def test_neither_the_batch_nor_the_threads_change_a_bit() -> None:
    passes.set_passes("fused")
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 3, 2, 169, 8).unbind()
    tables = torch.randn(25, 8), torch.randn(25, 8)
    S, offsets = torch.randn(2, 39, 169), torch.randn(2, 39, 50)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            sums = tile_passes.weights(S.clone(), offsets, 4, (13, 13), True, None)
            results.append(
                [sums, *tile_passes.gradients(S.clone(), offsets, sums, 4, (13, 13), True, for_v=True)]
            )
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))
    together = relative_attention_2d(q, k, v, *tables, (13, 13), True)
    for b in range(3):
        one = slice(b, b + 1)
        alone = relative_attention_2d(q[one], k[one], v[one], *tables, (13, 13), True)
        torch.testing.assert_close(alone, together[one], rtol=1e-5, atol=1e-6)


@needs_compiler
def test_a_second_backward_pass_finds_the_kept_weights_as_they_were() -> None:
    passes.set_passes("fused")
    leaves = [tensor.requires_grad_() for tensor in torch.randn(3, 1, 1, 36, 4).unbind()]
    out = relative_attention_2d(*leaves, torch.randn(11, 4), torch.randn(11, 4), (6, 6))
    once = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
    assert all(map(torch.equal, once, torch.autograd.grad(out.sum(), leaves)))


@needs_compiler
def test_what_is_built_is_kept_in_the_user_s_own_cache(
    builds_anew: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert passes.trouble() is None
    folder = tmp_path / "attneck"
    libraries = [*folder.iterdir()]
    assert len(libraries) == 2
    assert {library.suffix for library in libraries} == {".so"}
    assert folder.stat().st_mode & 0o777 == 0o700
    build.library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("it was built again"))
        build.library(tile_passes.SOURCE)
    folder.chmod(0o777)  # anybody could have put something there
    assert build._cache() is None


def test_who_has_no_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert build._cache() is None


@needs_compiler
def test_another_processor_s_library_is_not_taken(builds_anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a kind that has neither a name nor flags, as ARM's: a home may be shared."""
    for part in ("0xd0c", "0xd40"):
        monkeypatch.setattr(build, "processor", lambda part=part: {"CPU part": part})
        build.library.cache_clear()
        build.library(tile_passes.SOURCE)
    folder = build._cache()
    assert folder is not None
    assert len([*folder.iterdir()]) == 2


@needs_compiler
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return 1 / sum;", "return 2 / sum;", "gives wrong numbers"),
        ("x < WIDE; x++) add", "x < WIDE - 2; x++) add", "gives wrong numbers"),
        ("struct Query {", "struc Query {", "could not build them"),
        ("gradients_##T", "other_##T", "could not be built or loaded"),
    ],
    ids=["wrong", "wrong on narrow maps", "does not compile", "lacks a function"],
)
def test_what_is_wrong_or_fails_is_left_out_with_one_warning(
    old: str, new: str, says: str, builds_anew: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tile_passes.SOURCE.read_text()
    assert text.count(old) == 1
    source = tmp_path / "broken.cpp"
    source.write_text(text.replace(old, new))
    (tmp_path / "floats.h").write_bytes(tile_passes.SOURCE.with_name("floats.h").read_bytes())
    monkeypatch.setattr(tile_passes, "SOURCE", source)
    with pytest.warns(UserWarning, match=says) as warned:
        passes.passes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert passes.passes() == "operators"
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    with pytest.raises(ValueError, match=f"^fused passes were asked for, but .*{says}.*choose 'operators'"):
        passes.set_passes("fused")


def test_without_a_compiler_they_are_pytorch_s_and_nobody_is_told(
    builds_anew: None, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(passes, "compiler", lambda: None)
    assert passes.passes() == "operators"
    assert not recwarn.list


def test_the_variable_comes_first_and_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "trouble", lambda: pytest.fail("it was built"))
    monkeypatch.setenv(passes.VARIABLE, "operators")
    assert passes.passes() == "operators"
    assert not tiles.Tiling.of(torch.ones(1, 1, 4, 2), torch.ones(1), 2, 2, False).fused
    monkeypatch.setattr(passes, "_passes", None)
    monkeypatch.setenv(passes.VARIABLE, "inductor")
    with pytest.raises(ValueError, match=r"^unknown way .inductor.*fused, operators.*ATTNECK_PASSES"):
        passes.passes()


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_that_would_be_emulated_is_computed_in_float32(
    autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (operator, products):
        monkeypatch.setattr(module, "emulated", lambda dtype: dtype == torch.bfloat16)
    seen: list[torch.dtype] = []
    product = tiles.product
    monkeypatch.setattr(tiles, "product", lambda a, *b: seen.append(a.dtype) or product(a, *b))
    torch.manual_seed(0)
    layer, x = MHSA2d(16, (5, 6), heads=2), torch.randn(2, 16, 5, 6)
    want = layer(x)
    layer = layer if autocast else layer.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = layer(x if autocast else x.bfloat16())
    assert got.dtype == torch.bfloat16
    assert set(seen) == {torch.float32}
    assert (got.float() - want).norm() < 1e-2 * want.norm()
    got.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())


def test_float32_and_float64_are_never_emulated() -> None:
    assert not any(map(choice.emulated, (torch.float32, torch.float64)))
