"""A recipe becomes a run, and a run is read back."""
