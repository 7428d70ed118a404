"""What libraries would log or warn of is about patients: their words and values stay unsaid here."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Let nothing that these loggers say get anywhere meanwhile."""
    loggers = [logging.getLogger(name) for name in names]
    propagated = [logger.propagate for logger in loggers]
    silence = logging.NullHandler()
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(silence)
    try:
        yield
    finally:
        for logger, before in zip(loggers, propagated, strict=True):
            logger.propagate = before
            logger.removeHandler(silence)
