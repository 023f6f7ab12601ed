"""SqueezeNet 1.1 (Iandola et al. 2016), one of BAM's networks for small budgets (BAM §4.3).

Letters: B batch, H'×W' the last map.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.squeezenet import Fire

from attneck.layers import BAM
from attneck.models import parts
from attneck.models.pooling import check_head, pool_of
from attneck.models.recomputing import recomputed
from attneck.models.squeezenet import SqueezeNetOptions
from attneck.models.staged import StagedNet


class SqueezeNet(StagedNet):
    """torchvision's SqueezeNet 1.1: its `Fire` modules, and its names.

    The classifier is a 1×1 conv with ReLU. pool="logits" applies it to the last map and pools its result;
    pool="features" pools the map first. BAM stands after fire3 and fire5, before the pools.
    """

    def __init__(self, options: SqueezeNetOptions, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.classifier_name = options.classifier
        layers: list[tuple[str, nn.Module]] = [
            ("0", nn.Conv2d(in_chans, 64, 3, 2, options.stem_padding)),
            ("1", nn.ReLU(inplace=True)),
            ("2", _pool()),
            ("3", Fire(64, 16, 64, 64)),
            ("4", Fire(128, 16, 64, 64)),
            ("5", _pool()),
            ("6", Fire(128, 32, 128, 128)),
            ("7", Fire(256, 32, 128, 128)),
            ("8", _pool()),
            ("9", Fire(256, 48, 192, 192)),
            ("10", Fire(384, 48, 192, 192)),
            ("11", Fire(384, 64, 256, 256)),
            ("12", Fire(512, 64, 256, 256)),
        ]
        ends = {1: "1", 4: "4", 7: "7", 12: "12"}
        if options.bam == "stages":
            layers.insert(8, ("bam5", parts.bam(256, options)))
            layers.insert(5, ("bam3", parts.bam(128, options)))
            ends |= {4: "bam3", 7: "bam5"}
        self.features = nn.Sequential(OrderedDict(layers))
        self.row = [f"features.{name}" for name, _ in layers]
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": f"features.{name}"}
            for channels, reduction, name in zip(
                (64, 128, 256, 512), (2, 4, 8, 16), ends.values(), strict=True
            )
        ]
        self.num_features = 512
        self.pool = options.pool
        self.make_head(num_classes, options.global_pool, options.dropout)
        for module in self.features.modules():
            if isinstance(module, Fire):
                _initialise(module)
        _initialise(self.features[0])

    def make_head(self, num_classes: int, global_pool: str, dropout: float) -> None:
        """As the base's; the dropout is inside the classifier."""
        self.dropout = dropout
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The 1×1 conv, [B, num_features, H', W'] → [B, num_classes, H', W'], or its name."""
        if name_only:
            return self.classifier_name
        return self.classifier[1] if self.num_classes else self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As the base's; two pools side by side are refused, as they would double the logits."""
        if global_pool == "catavgmax":
            raise ValueError("global_pool='catavgmax': SqueezeNet pools its logits; 'avgmax' adds both pools")
        super().reset_classifier(num_classes, global_pool)

    def make_classifier(self) -> None:
        """Dropout, the 1×1 conv and ReLU."""
        self.classifier = nn.Sequential()
        if self.num_classes:
            like = next(self.parameters())
            conv: Any = nn.Conv2d(
                self.num_features, self.num_classes, 1, device=like.device, dtype=like.dtype
            )
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
            self.classifier.extend([nn.Dropout(self.dropout), conv, nn.ReLU(inplace=True)])
        self.classifier.train(self.training)

    def run(self, name: str, x: Tensor) -> Tensor:
        """As the base's; the blocks of the one Sequential are checkpointed one by one."""
        module = self.get_submodule(name)
        if self.grad_checkpointing and isinstance(module, Fire | BAM):
            return recomputed(module, x)
        return super().run(name, x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As the base's; the stages are between the pools."""
        if coarse:
            blocks = [
                (r"^features\.(?:3|4|bam3)\.", (0,)),
                (r"^features\.(?:6|7|bam5)\.", (1,)),
                (r"^features\.(?:9|10|11|12)\.", (2,)),
            ]
        else:  # a BAM stands between two blocks
            fires = [(rf"^features\.{number}\.", (number,)) for number in (3, 4, 6, 7, 9, 10, 11, 12)]
            blocks = [*fires, (r"^features\.bam3\.", (5,)), (r"^features\.bam5\.", (8,))]
        return {"stem": r"^features\.0\.", "blocks": blocks}

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """As the base's; what is pooled is the logits, unless pool="features"."""
        check_head(0 if pre_logits else self.num_classes, pool_of(self))
        if pre_logits or not self.num_classes:
            return self.global_pool(x)
        if self.pool == "features":
            x = self.global_pool(x)[:, :, None, None]
            return self.classifier(x).flatten(1)
        return self.global_pool(self.classifier(x))


def build_squeezenet(
    options: SqueezeNetOptions, *, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> SqueezeNet:
    """A `SqueezeNet`, BAM in it where asked for."""
    return SqueezeNet(options, num_classes, in_chans)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


def _initialise(module: nn.Module) -> None:
    """torchvision's start for SqueezeNet's convs."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
