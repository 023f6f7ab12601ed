"""Attention as functions of tensors; `reference` holds the same equations written to be read."""

from attneck.attention.choice import Choice, choose
from attneck.attention.gate import gate
from attneck.attention.relative import (
    pool_tokens,
    relative_attention_2d,
    relative_logits_2d,
    resample_rows,
    resample_table,
)

__all__ = [
    "Choice",
    "choose",
    "gate",
    "pool_tokens",
    "relative_attention_2d",
    "relative_logits_2d",
    "resample_rows",
    "resample_table",
]
