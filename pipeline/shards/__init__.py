"""Images as WebDataset tars: pack, carve, index, verify, and read them in an order that is a function of position."""
