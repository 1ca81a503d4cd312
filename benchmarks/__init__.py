"""How fast the SDK is beside what users would pick instead: `python -m benchmarks`, from the folder above."""
