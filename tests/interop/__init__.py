"""Tests that talk to real programs and real processes; ``programs`` finds and runs them."""
