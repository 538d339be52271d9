"""Results as FHIR R4 resources, for systems without DICOM.

bundle.py    one result as a Bundle, and many as JSON files in a folder
"""
