"""What this hospital allows, signed by its own people. What the policy does not name is refused.

`model` is the value, `signing` who stands behind it, `adoption` how a newer one takes effect, `gates` what is asked
of every request. All of that is pure; only `files` reads and writes.
"""
