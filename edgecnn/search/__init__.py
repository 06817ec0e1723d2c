"""Search over learning rate, width, depth, resolution and augmentation for nets that are accurate and fast."""
