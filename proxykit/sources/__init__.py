"""Where backends come from."""
