"""What is run on the project itself: its parts listed, and looked up among known weaknesses."""
