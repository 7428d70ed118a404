"""What hospital IT and the data steward type, by what it is about. `silo_agent.cli` puts it together."""
