"""Training: backbones, initial weights, cached features, augmentation and the training loop."""
