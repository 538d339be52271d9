"""Images had from a PACS or a DICOMweb server, resumable.

folder.py    what was fetched: files, a journal, a manifest
pacs.py      C-FIND, then C-GET or C-MOVE
"""
