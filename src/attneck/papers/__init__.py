"""Every figure that the two papers print, but for BAM's supplement, beside what is computed and measured."""

from attneck.papers.tables import PAPERS, Cost, Network, Paper, Row, Table, compare, load_paper

__all__ = ["PAPERS", "Cost", "Network", "Paper", "Row", "Table", "compare", "load_paper"]
