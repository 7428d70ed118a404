"""The daemon in the hospital. It dials out, trains in a child process, and releases through one module only."""
