"""fedit."""
