"""Okabe and Ito's colours, which the colour-blind can tell apart."""

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
LINES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
"""Without yellow, which is no line on white."""
COLOURS = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE)

HEAT = "viridis"
"""matplotlib's map of quantities: its lightness rises evenly, so it reads in grey and by the colour-blind."""
