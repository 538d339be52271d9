"""Answers as DICOM objects in the study that they are about: a report, and a picture of the map.

source.py               a DICOM film's patient and study, checked for what reports need
author.py               who answers: program, version, model; and UIDs that are its own
structured_report.py    Comprehensive SR by TID 1500
secondary_capture.py    Secondary Capture of the overlay
objects.py              one answer → the objects to file with it
folder.py               the objects of many answers, as files
"""
