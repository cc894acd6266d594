"""Two moons: Meta Pseudo Labels and its controls on points in the plane, many seeds side by side (Pham 2021, 3.1)."""
