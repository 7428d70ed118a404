"""Rungs before a study, each on the code path of the next: check, rehearse, scan, dry-run, baseline, then run.

`silo_agent.preflight` is the first rung. None of these tells anybody outside anything, and none spends a budget.
"""
