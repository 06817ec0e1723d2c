"""Recipe, augmentation, the loop and checkpoints; torch lives here and in `nets`."""
