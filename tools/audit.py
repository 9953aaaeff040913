"""``python -m tools.audit``: look the installed packages up among published weaknesses, with pip-audit.

Exit codes: 0 nothing is known; 1 a package has a known weakness; 3 nothing was looked up, since pip-audit or its
advisory service could not be reached, which is no good news.
"""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

CLEAN, WEAK, NOT_REACHED = 0, 1, 3
PIP_AUDIT = "pip-audit==2.10.1"


def judge(dependencies: Sequence[Mapping[str, object]]) -> tuple[int, list[str]]:
    """Return the exit code and the lines to print for what pip-audit says of each package.

    A package that pip-audit could not look up is not one without weaknesses: where that is most of them, the
    service was not in reach, whatever pip-audit's own exit code says.
    """
    weak = [own for own in dependencies if own.get("vulns")]
    skipped = [str(own["name"]) for own in dependencies if "skip_reason" in own]
    looked_up = len(dependencies) - len(skipped)
    if weak:
        return WEAK, [
            f"{own['name']} {own['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
            for own in weak
            for found in own["vulns"]
        ]
    if looked_up <= len(skipped):
        return NOT_REACHED, [
            f"{looked_up} of {len(dependencies)} packages could be looked up: the advisory service is not in "
            "reach from here, and nothing is known of the others. Run it where https://pypi.org can be reached."
        ]
    lines = [f"{looked_up} packages looked up, no known weakness"]
    return CLEAN, lines + ([f"not looked up: {', '.join(sorted(skipped))}"] if skipped else [])


def main() -> int:
    """Run pip-audit on the packages of this environment, in one of its own, and return the exit code."""
    uv = Path(sys.executable).parent / "uv"
    command = [str(uv) if uv.is_file() else "uv", "tool", "run", PIP_AUDIT, "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", "15", "--path", sysconfig.get_path("purelib")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        dependencies = json.loads(done.stdout)["dependencies"]
    except (OSError, ValueError, KeyError) as error:
        said = done.stderr.strip().splitlines()[-1:] if isinstance(error, ValueError | KeyError) else [str(error)]
        print(f"pip-audit could not be had or gave no result: {' '.join(said)[:300]}")
        return NOT_REACHED
    code, lines = judge(dependencies)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
