"""How the process behaves: quiet libraries that send nothing anywhere."""

import logging
import os
import warnings

DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
"""Environment variables that are set unless the user has set them."""


def set_environment() -> None:
    """Set the environment's defaults; they count where the libraries have not been imported yet."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def silence_libraries() -> None:
    """Silence what libraries print about themselves; the command line does, programs decide for themselves."""
    for name in ("bitsandbytes", "transformers", "peft", "matplotlib", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # transformers announces its own future inside calls that fedit does not make differently
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
