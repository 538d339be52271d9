"""From a bundle and an image to a prediction: the one way that every command answers by."""
