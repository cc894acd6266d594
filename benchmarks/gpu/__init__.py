"""What a GPU does in a few minutes: `python -m benchmarks gpu`."""
