"""Labels and scores in, numbers with their uncertainty out. NumPy only; no model, no image."""
