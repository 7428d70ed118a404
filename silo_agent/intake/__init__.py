"""From a hospital's archive to the model's input: every file ends in exactly one terminal state.

Runs in a child process of the agent. Identifiers live in that process and in `refused.csv` on the hospital's
own disk, nowhere else.
"""
