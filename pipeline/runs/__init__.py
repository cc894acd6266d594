"""A run: its loop of rounds, its fine-tune and control, its result, its ledger and its folder."""
