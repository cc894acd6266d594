"""What a model says of a user's images, as a table: `selftrain predict`."""
