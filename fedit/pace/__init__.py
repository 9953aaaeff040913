"""The pace of a federation: whom a round asks, whose update it waits for, and what that takes."""
