"""What a job takes before it is run: time, memory, traffic, disk, privacy."""
