"""The numbers of a run where people look at them: TensorBoard beside the log, and trackers that are asked for."""
