"""Ending every process that this one has started."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other process trees")

# A process with a child in a session of its own, as no signal to the process group reaches it.
_PARENT = """
import subprocess, sys, time
child = "import sys, time; print('up', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(600)
"""
_KILLER = f"""
import subprocess, sys
from minigpt4_serve.process_tree import descendants, kill_descendants
parent = subprocess.Popen([sys.executable, "-c", {_PARENT!r}], stdout=subprocess.PIPE, text=True)
parent.stdout.readline()
print(*descendants(), flush=True)
kill_descendants()
parent.stdout.read()  # ends when both are gone
print("gone", flush=True)
"""


def test_descendants_of_any_depth_are_killed() -> None:
    killer = subprocess.run([sys.executable, "-c", _KILLER], capture_output=True, text=True, timeout=120, check=True)
    pids, gone = killer.stdout.splitlines()
    assert len(pids.split()) == 2
    assert gone == "gone"
