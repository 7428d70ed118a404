"""What a reviewer relies on: audit events, privacy events, policy, evidence. Knows no network and no model."""
