"""Sans-I/O: bytes in, results out. No sockets, no reactor and no clock in here."""
