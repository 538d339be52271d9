"""Reading DICOM: `decode` gives the picture, `patient` the age; the other modules are their parts.

pydicom takes 0.2 s to import, so it is imported only where a file is DICOM.
"""
