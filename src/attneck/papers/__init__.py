"""Every figure that the two papers print, beside what is computed and what was measured."""

from attneck.papers.tables import PAPERS, Cost, Network, Paper, Row, Table, compare, load_paper

__all__ = ["PAPERS", "Cost", "Network", "Paper", "Row", "Table", "compare", "load_paper"]
