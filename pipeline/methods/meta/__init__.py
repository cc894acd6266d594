"""Meta Pseudo Labels (Pham 2021): a teacher that learns from what its student learns."""
