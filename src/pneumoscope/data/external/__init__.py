"""Public data sets in their owners' layouts → a manifest that `evaluate` takes.

One module per data set: it reads the owner's tables and says of each film which label it gets, or
why it gets none. `registry.py` lists them, `adopt.py` filters and counts, `write.py` writes.
"""
