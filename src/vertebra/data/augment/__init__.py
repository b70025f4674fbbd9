"""Augmentation: what is drawn for an image (policies, reader), for a batch (batch), for an epoch (sampler)."""
