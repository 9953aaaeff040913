"""How the process behaves: quiet libraries that send nothing anywhere."""

import logging
import os
import platform
import warnings
from collections.abc import Mapping

DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
"""Environment variables that are set unless the user has set them."""


ALLOCATOR = "FEDIT_ALLOCATOR"
"""Environment variable that leaves the allocator of worker processes alone where it says "system"."""
TUNABLES = {
    "glibc.malloc.mmap_threshold": "33554432",
    "glibc.malloc.trim_threshold": "17179869184",
    "glibc.malloc.hugetlb": "1",
}
"""glibc's names: activations stay in the heap from step to step instead of being mapped and cleared anew, in
transparent huge pages where the system allows them."""


def allocator_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that set up the allocator of a process to be started; what the user set comes first."""
    if environ.get(ALLOCATOR) == "system" or platform.libc_ver()[0] != "glibc":
        return {}
    given = environ.get("GLIBC_TUNABLES", "")
    added = [f"{name}={value}" for name, value in TUNABLES.items() if f"{name}=" not in given]
    return {"GLIBC_TUNABLES": ":".join([*filter(None, [given]), *added])}


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
