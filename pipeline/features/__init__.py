"""Features: what a frozen encoder makes of every image, stored once, for probes and whatever else reads them."""
