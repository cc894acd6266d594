"""Pseudo-labels: the teacher's pass, the files it fills, the choice of what to train on, and the targets."""
