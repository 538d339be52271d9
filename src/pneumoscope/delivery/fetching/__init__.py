"""Fetch images from a PACS or a DICOMweb server, resumable.

pacs.py         C-FIND, then C-GET or C-MOVE; the folder with files, journal and table
pseudonyms.py   files and table under pseudonymous identifiers
"""
