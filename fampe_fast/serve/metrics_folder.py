"""Name the environment variable through which prometheus-client shares counts between processes."""

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""It is read when ``prometheus_client`` is first imported, so it must be set before."""
