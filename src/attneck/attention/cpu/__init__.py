"""Attention on the CPU: one operator, exact, with memory linear in the map."""
