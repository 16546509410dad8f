"""Sockets: what listens, what connects, and what moves bytes between the two."""
