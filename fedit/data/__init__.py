"""Data: rows in, token ids and loss masks out; who holds which row."""

DEPLOYMENT = "deployment"
"""The scheme of a partition that nobody made: sites bring what they have."""
