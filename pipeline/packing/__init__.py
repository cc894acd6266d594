"""Anyone's images to shards: sources, scan, carve, write, verify."""
