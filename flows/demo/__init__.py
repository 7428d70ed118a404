"""`wardround demo`: every real part on one machine, started, shown and stopped by one command."""
