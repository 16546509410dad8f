"""One file for each component that a user can name in ``mode = "..."``."""
