"""The selection, which a student sees: its rules, its summary, and the targets of its images."""
