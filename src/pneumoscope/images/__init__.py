"""One file to one array: reading, preprocessing, augmenting; and X-rays drawn by procedure.

Comes in: a path or bytes. Goes out: grey in [0, 1] and what the network takes of it.
Knows nothing of labels, splits or models.
"""
