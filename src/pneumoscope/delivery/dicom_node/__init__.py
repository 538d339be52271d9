"""A DICOM node: films in by C-STORE or WADO, reports out by C-STORE or STOW; no kill loses any.

spool.py       films and reports on disk, and in SQLite what is to be done with each
receiver.py    C-ECHO and C-STORE: a film is acknowledged when it is in the spool
server.py      the listening socket, guarded against idle and boundless callers
answerer.py    films to reports
sender.py      reports to the destination, again and again until it takes them
dicomweb.py    QIDO-RS, WADO-RS and STOW-RS, as a client
poller.py      new films of a DICOMweb server into the spool
stow.py        reports to a DICOMweb server
peers.py       AE titles, addresses, TLS
audit.py       what happened, as JSON lines without a word about a patient
node.py        all of them, started and stopped
"""
