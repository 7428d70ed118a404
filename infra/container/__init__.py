"""The agent's container, and a trial of it without a Docker engine: `python -m infra.container`."""
