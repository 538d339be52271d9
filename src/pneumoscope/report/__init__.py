"""HTML pages, figures and the model card, from records of results; loads no model."""
