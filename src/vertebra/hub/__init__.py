"""Name -> weights -> state dict -> model."""
