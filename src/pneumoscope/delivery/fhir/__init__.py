"""Results as FHIR R4 resources, for systems that take no DICOM.

bundle.py    one result → a Bundle of DiagnosticReport, Observation, Device and Provenance
folder.py    many results → a JSON file each
"""
