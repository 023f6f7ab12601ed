"""The base of our own networks: modules in a row, a global average pool, a classifier.

The methods have timm's names, so code that is written for a timm model takes these networks too.
Letters: B batch, C channels, H×W map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class StagedNet(nn.Module):
    """A row of modules → map → mean → dropout → `fc`.

    A family's constructor adds its modules, and sets:
        row: the modules' names, in the order of the forward pass.
        feature_info: an entry for each module that ends a stage: `module` is its name, `num_chs` its output's
            channels, and `reduction` its output's stride: the pixels of a position, along each side.
        num_features: the channels of the last map.
    """

    row: list[str]
    feature_info: list[dict[str, Any]]
    num_features: int
    num_classes: int
    fc: nn.Module
    drop: nn.Module

    def get_classifier(self) -> nn.Module:
        """The last layer: [B, num_features] → [B, num_classes]."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier of `num_classes` (0: none)."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def initialise(self) -> None:
        """Draw every conv's weights by He et al. 2015, as residual networks are."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] → the last map [B, num_features, H', W']."""
        for name in self.row:
            x = self.get_submodule(name)(x)
        return x

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
            x = self.get_submodule(name)(x)
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
        """[B, num_features, H', W'] → logits [B, num_classes], or the pooled features before them."""
        x = self.drop(x.mean(dim=(2, 3)))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] → logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))
