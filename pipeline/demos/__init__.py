"""The demos, digits and the two moons: they use the library, and the core never bends for them."""
