"""What a network costs: parameters and multiply-adds."""

from attneck.measure.counts import Counts, count, count_parameters

__all__ = ["Counts", "count", "count_parameters"]
