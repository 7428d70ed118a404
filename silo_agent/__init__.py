"""The daemon in the hospital. It dials out, trains in a child process, and releases through one module only."""

import sys

# httpx's own command line, which nobody calls here, loads click, rich and pygments: a tenth of our start-up. Where they
# are not installed httpx does without it; this tells it the same.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
