"""The tests. Run `pytest` at the top of the repository."""
