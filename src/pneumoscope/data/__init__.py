"""Build one checked table of images, labels, patients and splits from many files.

`sources` downloads, `index` reads a folder or a manifest, `patients` assigns patient ids,
`split_files` and `splitting` split by patient, and `audit` searches for defects that would bias
results.
"""
