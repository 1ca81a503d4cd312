"""The speed of the SDK beside its alternatives: `python -m benchmarks`, from the project's folder."""
