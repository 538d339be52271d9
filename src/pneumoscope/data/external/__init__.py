"""Convert public data sets in their owners' layouts to a manifest for `evaluate`.

There is one module per data set. It reads the owner's tables and gives each image a label, or the
reason why it has none. `registry.py` lists the data sets; `adopt.py` filters, counts and writes.
"""
