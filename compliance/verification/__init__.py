"""The offline verifier: from a bundle and a reviewer's own keys to a verdict. `verify.py` has the list of checks."""
