"""The model over HTTP: the REST interface, and the page for people.

app.py        every route; what of the other modules it is made of
guard.py      around every request: limits, keys, headers, log, metrics
upload.py     a multipart body → files in memory, never on disk
work.py       who is taken on, who waits, who is turned away
documents.py  answers, refusals and the model as JSON
schemas.py    the same, for the OpenAPI document
metrics.py    Prometheus
logs.py       lines of JSON without file names or anything of patients
pages.py      files of `web/`, and the page of /docs
server.py     sockets, TLS, signals
"""
