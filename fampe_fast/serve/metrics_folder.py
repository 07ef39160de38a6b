"""Name the variable by which prometheus-client finds the counts of a service's other processes."""

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""It is read when ``prometheus_client`` is first imported, and so has to be set before."""
