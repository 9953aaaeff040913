"""What the tests of deployments share."""

from pathlib import Path

import pytest

from fedit.flower.init import create
from fedit.flower.layout import Deployment
from fedit.flower.processes import free_port


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """Two sites, a and b, and a server on a free port of this machine; nothing runs."""
    return create(tmp_path / "d", ["a", "b"], "127.0.0.1", free_port(), insecure=False)
