"""One point of a sweep in a process of its own: ``python -m fedit.sweep.point_process JOB FOLDER``."""

import sys

from fedit import settings
from fedit.errors import FeditError, UserError
from fedit.process import silence_libraries
from fedit.study.run import run_study


def main(job: str, folder: str) -> int:
    """Run the study of a job file into a folder; return the exit code, as commands do."""
    silence_libraries()
    try:
        run_study(settings.load(job), folder, pdf=False)
    except FeditError as error:
        print(error, file=sys.stderr)  # noqa: T201  # the sweep's process reads it
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
