"""Everything two parties must agree on byte for byte. Sans-I/O: a security officer reads this one folder."""
