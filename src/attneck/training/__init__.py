"""Training: a typed recipe, one visible loop, checkpoints that survive anything. Knows nothing of models."""
