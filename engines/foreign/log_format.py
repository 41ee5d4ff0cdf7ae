"""Log records on one line of visible characters each."""

from __future__ import annotations

import logging

from reptrt.engines.foreign.text import visible


class VisibleFormatter(logging.Formatter):
    """Formats records; what libraries and files put into a message is shown, not obeyed."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line of `record`; a traceback of ours follows it as it is."""
        record.message = visible(record.message)
        return super().formatMessage(record)
