"""Attention in a network that is there already: pretrained, of torchvision, timm or your own.

Each function changes the model in place and returns it with a report. Every tensor that stays keeps its value
and its name in the state dict.
"""

from attneck.surgery.adopt import Adopted, Adoption, adopt
from attneck.surgery.attend import attend
from attneck.surgery.between import insert_attention_block
from attneck.surgery.insert import insert_bam, insert_se
from attneck.surgery.report import Change, Report, Result

__all__ = [
    "Adopted",
    "Adoption",
    "Change",
    "Report",
    "Result",
    "adopt",
    "attend",
    "insert_attention_block",
    "insert_bam",
    "insert_se",
]
