"""A stage: its fingerprint, folder and lock (reuse, resume or refuse), and how it runs in processes of its own."""
