"""Deployment, example configuration and the hospitals that tests and the demo run on."""
