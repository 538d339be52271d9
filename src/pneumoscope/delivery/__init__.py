"""A model for other programs: exported graphs, REST, DICOM, FHIR and a DICOM node."""
