"""``fedit doctor``: is this machine able to run fedit?"""


def doctor() -> None:
    """Check this machine."""
