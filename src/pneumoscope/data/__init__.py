"""Build one checked table of images, labels, patients and splits from many files.

`sources` downloads, `index` reads a folder or a manifest, `patients` assigns patient ids,
`splits` and `splitting` split by patient, `adopt` reads public data sets in their owners' layouts,
and `audit` searches for defects that would bias results.
"""
