"""What all runs append to: one JSON object a run, with the time and the machine."""

import json
import os
import platform
import time
from pathlib import Path

HISTORY = Path(__file__).parent / "history.jsonl"


def machine() -> dict[str, object]:
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        lines = info.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {"cpu": name, "cores": os.cpu_count(), "threads": 1, "system": platform.system()}


def append(record: dict) -> None:
    with open(HISTORY, "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time()), **record}, sort_keys=True) + "\n")
