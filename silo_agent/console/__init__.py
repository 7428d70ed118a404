"""The steward's console: pages on 127.0.0.1, rendered here, without scripts and without anything from elsewhere.

A process of its own beside the daemon, on the same journal. What a person decides goes through `silo_agent.steward` and
`silo_agent.witness`, as it does from the terminal; there is no other way from here into the journal.
"""
