"""``python -m fedit.follower_process``: computes shares of gradients for the process that started it."""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

from fedit.process import set_environment, silence_libraries


def main() -> None:
    """Read what to load from standard input, then work until it ends."""
    hello = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_leader, args=(hello["store"],), daemon=True).start()
    set_environment()
    silence_libraries()
    import torch

    from fedit.config import RunConfig
    from fedit.crew import follow
    from fedit.prepare import load_model

    torch.set_num_threads(hello["num_threads"])
    follow(load_model(RunConfig.model_validate(hello["config"])), hello["rank"], hello["size"], hello["store"])


def _end_with_the_leader(store: str) -> None:
    """Wait for the end of standard input: whoever started this process is done, or gone without tidying."""
    sys.stdin.read()
    shutil.rmtree(Path(store).parent, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
