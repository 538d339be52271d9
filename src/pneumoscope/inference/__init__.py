"""Inference: from a bundle and an image to a prediction, by one `Predictor` for all commands."""
