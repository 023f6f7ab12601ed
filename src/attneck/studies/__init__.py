"""Studies: a table of runs, made by `attneck train`, and what they say together."""
