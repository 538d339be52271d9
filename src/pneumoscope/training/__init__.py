"""From a table of images to trained weights: network, initial weights, cached features, fitting."""
