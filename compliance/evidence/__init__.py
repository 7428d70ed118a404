"""The evidence report of a study: facts read from the logs of a bundle, verdicts over them, and how both are shown."""
