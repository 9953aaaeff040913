"""``python -m fedit``."""

from fedit.cli import main

main()
