"""Training: the loop, its steps, and what makes both exact."""
