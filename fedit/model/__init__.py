"""The frozen base model and its LoRA adapter: the only place that knows PEFT names, dtypes and devices."""
