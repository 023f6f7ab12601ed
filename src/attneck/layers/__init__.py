"""The attention layers that go into a network."""

from attneck.layers.bam import BAM
from attneck.layers.fold import fold
from attneck.layers.mhsa import MHSA2d
from attneck.layers.non_local import NonLocal2d
from attneck.layers.recalibrate import recalibrate
from attneck.layers.squeeze_excite import SqueezeExcite2d

__all__ = ["BAM", "MHSA2d", "NonLocal2d", "SqueezeExcite2d", "fold", "recalibrate"]
