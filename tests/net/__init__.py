"""Sockets for real, over loopback; each file tests the module of its name."""
