"""Is it any good? Losses, generated answers, grades."""
