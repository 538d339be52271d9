"""Many files → one verified table of images, labels, patients and splits.

`sources` fetches, `index` reads a folder or a manifest, `patients` says who is who, `split` deals
patients to splits, `audit` looks for what would make a result wrong. Knows nothing of models.
"""
