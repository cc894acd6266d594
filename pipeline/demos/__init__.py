"""Users of the library, for which the core never bends: digits, and the two moons."""
