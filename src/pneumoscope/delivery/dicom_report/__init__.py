"""Results as DICOM objects in the study of their image: a report, an overlay, a segmentation.

source.py               patient and study of a DICOM image; program and model, and their UIDs
structured_report.py    Comprehensive 3D SR by TID 1500
secondary_capture.py    Secondary Capture of the heatmap over the image
segmentation.py         the heatmap as a fractional Segmentation
objects.py              the objects of one result, and of many as files in a folder
"""
