"""Quiet libraries: what they print about themselves would bury what a run says."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Silence progress bars, telemetry and advice of the libraries underneath; call before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for name in ("bitsandbytes", "transformers", "peft", "matplotlib", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # transformers announces its own future inside calls that fedit does not make differently
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
