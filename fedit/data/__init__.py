"""Data: rows in, token ids and loss masks out; who holds which row."""
