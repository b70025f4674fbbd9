"""A model made fast: the backends, the choice among them, and the proof of its answers."""
