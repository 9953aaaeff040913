"""The leakage audit: what a run's models and uploads tell of the rows that were trained on."""
