"""What a stage is (fingerprint, folder, lock: reuse, resume or refuse), and how it runs in processes of its own."""
