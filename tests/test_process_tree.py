"""Finding and killing the processes that a process has started."""

import subprocess
import sys
from pathlib import Path

import pytest

from minigpt4_serve import process_tree

not_on_windows = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other process trees")

# A process with a child in another session, out of reach of signals to the process group.
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
print(*descendants(parent.pid), flush=True)
kill_descendants()
parent.stdout.read()  # ends when both are gone
print("gone", flush=True)
"""


@not_on_windows
def test_descendants_of_any_depth_are_killed() -> None:
    killer = subprocess.run([sys.executable, "-c", _KILLER], capture_output=True, text=True, timeout=120, check=True)
    pids, of_child, gone = killer.stdout.splitlines()
    assert pids.split()[1:] == [of_child]
    assert gone == "gone"


def test_a_system_without_a_process_list_has_no_descendants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_tree, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(process_tree, "_PS", tmp_path / "ps")
    assert process_tree.descendants() == []
    process_tree.kill_descendants()
