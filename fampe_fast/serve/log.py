"""Write the service's log: a JSON object per line on standard error, without data of images."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

_LOGGER = logging.getLogger("fampe_fast.serve")


class JSONFormatter(logging.Formatter):
    """Formats a record as one line of JSON; of other libraries' records only the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Format time (seconds since 1970), level, event and fields."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        content = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage().replace("\n", " "),
            **fields,
        }
        if record.exc_info and record.exc_info[1] is not None:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


def log(event: str, level: str = "info", **fields: Any) -> None:
    """Log an event with its fields, which are plain values."""
    _LOGGER.log(getattr(logging, level.upper()), event, extra={"fields": fields})


def log_error(event: str, error: BaseException, **fields: Any) -> None:
    """Log an unexpected error with its traceback."""
    _LOGGER.error(event, exc_info=error, extra={"fields": fields})


def begin_log(level: str) -> None:
    """Send this service's log, the server's and Python's warnings to standard error.

    Args:
        level: level of the service's own events: "debug", "info", "warning" or "error".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
    logging.captureWarnings(True)
    for name, least in (
        (_LOGGER.name, level.upper()),
        ("uvicorn.error", "WARNING"),
        ("py.warnings", "WARNING"),
        ("asyncio", "WARNING"),
    ):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False
