"""Training with a guarantee per patient: sampling, clipping, noise (docs: privacy in docs/threat-model.md)."""
