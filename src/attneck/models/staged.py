"""The base of our own networks: modules in a row, a global pool, a classifier.

The methods have timm's names, so code that is written for a timm model takes these networks too.
Letters: B batch, C channels, H×W map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from attneck.layers.mhsa import NO_DECAY
from attneck.models.pooling import GlobalPool, check_head, pool_of
from attneck.models.recomputing import recompute

PREVIOUS = (99999,)
"""timm's `MATCH_PREV_GROUP`: parameters that belong to the group before them."""


class StagedNet(nn.Module):
    """A row of modules → map → `global_pool` → dropout → `fc`.

    A family's constructor adds its modules, calls `make_head`, and sets:
        row: the modules' names, in the order of the forward pass.
        feature_info: an entry for each module that ends a stage: `module` is its name, `num_chs` its output's
            channels, and `reduction` its output's stride: the pixels of a position, along each side.
        num_features: the channels of the last map.
    """

    row: list[str]
    feature_info: list[dict[str, Any]]
    num_features: int
    head_hidden_size: int
    """Channels after the pool: what the classifier takes."""
    num_classes: int
    global_pool: GlobalPool
    fc: nn.Module
    drop: nn.Module
    classifier_name: str = "fc"
    grad_checkpointing: bool = False

    def make_head(self, num_classes: int, global_pool: str, dropout: float) -> None:
        """The modules after the last map; `num_features` is set before."""
        self.drop = nn.Dropout(dropout)
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last layer, [B, head_hidden_size] → [B, num_classes], or its name."""
        return self.classifier_name if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of `num_classes` (0: none), and another pool if one is given.

        Raises:
            ValueError: an unknown pool, or a classifier together with none.
        """
        check_head(num_classes, global_pool)
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool = GlobalPool(pool).train(self.training)
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.make_classifier()

    def make_classifier(self) -> None:
        """The last layer, on the device and in the dtype of the others."""
        like = next(self.parameters())
        self.fc = nn.Identity()
        if self.num_classes:
            self.fc = nn.Linear(self.head_hidden_size, self.num_classes, device=like.device, dtype=like.dtype)
        self.fc.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the maps inside a block again in backward instead of keeping them (less memory, more time).

        Results, gradients and the statistics of BatchNorms stay the same. `torch.compile` leaves the blocks
        as they are.
        """
        self.grad_checkpointing = enable
        for name in self.row:
            recompute(self.get_submodule(name), enable)

    def no_weight_decay(self) -> set[str]:
        """Patterns of the position tables' names, which timm's optimisers then do not decay."""
        return {*NO_DECAY}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns: the stem, each block (coarse: each stage) and the head, in order of the depth.

        Layer-wise learning rates go by them (`timm.optim`).
        """
        block = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": [(block, None), (r"^norm\.", PREVIOUS)]}

    def initialise(self) -> None:
        """Draw every conv's weights by He et al. 2015, as residual networks are."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] → the last map [B, num_features, H', W']."""
        for name in self.row:
            x = self.run(name, x)
        return x

    def run(self, name: str, x: Tensor) -> Tensor:
        """The module of that name in the row, [B, C, H, W] → [B, C', H', W']."""
        result: Tensor = self.get_submodule(name)(x)
        return result

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps at the ends of stages, x [B, C, H, W] → [B, num_chs, H', W'] each; and the last map.

        Args:
            indices: which entries of `feature_info`; a number n: the last n; None: all.
            norm: apply the norm and activation after the last stage to its map, if the network has them.
            stop_early: stop after the last map that is asked for; that is then the last map returned.
            output_fmt: "NCHW"; there is no other.
            intermediates_only: return the list alone.

        Raises:
            ValueError: indices out of range, or another format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: these maps are 'NCHW' only")
        take = self._stages(indices)
        ends = [self.feature_info[index]["module"] for index in take]
        through = norm and take[-1] == len(self.feature_info) - 1
        stop = (stop_early or intermediates_only) and not through
        maps = []
        for name in self.row[: self.row.index(ends[-1]) + 1 if stop else None]:
            x = self.run(name, x)
            if name in ends:
                maps.append(x)
        if through:
            maps[-1] = x
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the features at `indices` do not need; return the indices, none of them negative.

        Args:
            indices: as `forward_intermediates` takes them.
            prune_norm: remove the modules after the last stage too. After an earlier stage, they always go.
            prune_head: remove the classifier. If modules before it go, it always goes.
        """
        take = self._stages(indices)
        last = self.feature_info[take[-1]]
        if prune_norm or last is not self.feature_info[-1]:
            end = self.row.index(last["module"]) + 1
            for name in self.row[end:]:
                parent, _, child = name.rpartition(".")
                delattr(self.get_submodule(parent), child)
            del self.row[end:]
            self.num_features = last["num_chs"]
            prune_head = True
        if prune_head:
            self.reset_classifier(0)
        return take

    def _stages(self, indices: int | Sequence[int] | None) -> list[int]:
        """Indices into `feature_info`, in order, none negative."""
        from timm.models._features import feature_take_indices  # here: timm takes seconds, logits need none

        count = len(self.feature_info)
        given = indices if indices is None or isinstance(indices, int) else list(indices)
        try:
            return sorted(feature_take_indices(count, given, as_set=True)[0])
        except (AssertionError, ValueError) as error:  # out of range, or none at all
            raise ValueError(
                f"indices {indices} of {count} features: give how many of the last, or which"
            ) from error

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, num_features, H', W'] → logits [B, num_classes], or the pooled features before them.

        Raises:
            ValueError: a classifier, and no pool before it.
        """
        check_head(0 if pre_logits else self.num_classes, pool_of(self))
        x = self.drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] → logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))
