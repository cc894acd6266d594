"""A run: its rounds and control, its fine-tune, its result, its folder."""
