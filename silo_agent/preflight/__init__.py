"""`silo-agent check`: what hospital IT can find out before the first round, each failure with its fix.

`command.main` is the command, `ladder.run_checks` the checks. Nothing here changes what the agent keeps.
"""
