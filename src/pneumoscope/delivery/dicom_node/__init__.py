"""A DICOM node: films come in by C-STORE, reports go out by C-STORE; no kill loses either.

spool.py       films and reports on disk, and in SQLite what is to be done with each
receiver.py    C-ECHO and C-STORE: a film is acknowledged when it is in the spool
server.py      the listening socket, guarded against idle and boundless callers
answerer.py    films to reports
sender.py      reports to the destination, again and again until it takes them
peers.py       AE titles, addresses, TLS
audit.py       what happened, as JSON lines without a word about a patient
node.py        all of them, started and stopped
"""
