"""The modes, between real clients and real backends."""
