"""Measurements. They print ratios within one run; absolute numbers hold for the machine they name."""
