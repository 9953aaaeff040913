"""Fuzzing: every parser of outside input is fed broken input for as long as one likes.

``make fuzz SECONDS=60`` runs every target of `fuzz.targets.TARGETS` for so many seconds. Inputs that broke
something once lie in ``fuzz/corpus`` and are tried again by the tests.
"""
