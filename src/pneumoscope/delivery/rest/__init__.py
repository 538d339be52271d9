"""The model over HTTP: the REST interface and the web page.

app.py          the routes, the files of `web/`, and the page `/docs`
service.py      the shared model, the queue of requests, threads and counters
pipeline.py     images to results: threads that read, one that runs inference
guard.py        around each request: hosts, origins, keys, limits, headers, log, metrics; errors
upload.py       a multipart body to files in memory, never on disk
documents.py    results, rejections and the model as JSON, and their OpenAPI schemas
logs.py         JSON log lines without file names or patient data; Prometheus metrics
server.py       sockets, TLS, signals, limits of connections and idle clients
"""
