"""Decisions. No sockets and no reactor in here; what needs the time is handed a clock."""
