"""Figures with a target, measured again on every machine: `make bench`, or `python -m infra.bench --help`."""
