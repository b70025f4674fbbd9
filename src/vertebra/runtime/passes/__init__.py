"""Passes over a model's graph, for weights that do not change: what it answers stays, how it is computed does not."""
