"""Results as DICOM objects in the study of their image: a report, an overlay, a segmentation.

source.py               patient and study of a DICOM image; program and model, and their UIDs
heatmap.py              the heatmap over the image (Secondary Capture), and as a Segmentation
objects.py              the report (Comprehensive 3D SR by TID 1500); the objects of one result,
                        and of many as files in a folder
"""
