"""What a student sees: rules, the selection, its summary, and targets."""
