"""Text of strangers, made fit for a terminal or a log: no line breaks, escapes or reversed writing."""

MOST_SHOWN = 4000  # characters; a plan's longest sentence has 2000


def plain(text: str) -> str:
    """Every character that does not show itself is written as its escape, so that what is read is what is there."""
    shown = text[:MOST_SHOWN] + (" ..." if len(text) > MOST_SHOWN else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
