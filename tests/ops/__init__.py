"""The service as an operator and an embedder see it."""
