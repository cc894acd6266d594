"""The config that `selftrain init` prints."""
