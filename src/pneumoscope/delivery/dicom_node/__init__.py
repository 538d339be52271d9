"""A DICOM node: images arrive by C-STORE or WADO-RS, reports leave by C-STORE, STOW-RS or FHIR.

spool.py        images and reports on disk
queue.py        the state of each, in SQLite
server.py       the listening socket; C-ECHO and C-STORE
poller.py       new images of a DICOMweb server
scorer.py       images to reports; the audit log
sender.py       reports to a destination, with retries; C-STORE, STOW-RS, FHIR Bundles
dicomweb.py     QIDO-RS, WADO-RS and STOW-RS as a client
http_client.py  HTTP requests with bounded time and size; the UIDs of a file
peers.py        AE titles, addresses, TLS
status.py       what a spool holds; the table of results; `/healthz` and `/metrics`
node.py         starts, watches and stops all of them

A kill or a power cut at any time loses no image and no report.
"""
