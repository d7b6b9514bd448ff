"""uv, as ``make`` fetches it, for tests that install packages into environments of their own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_uv(*arguments: str | Path, **environment: str) -> str:
    """The output of a uv command; the test is skipped where uv isn't installed."""
    local = ROOT / ".uv" / "bin" / "uv"
    uv = os.environ.get("UV") or shutil.which("uv") or (str(local) if local.exists() else None)
    if uv is None:
        pytest.skip("uv is not installed")
    done = subprocess.run(
        [uv, *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
