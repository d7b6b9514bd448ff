"""The benchmark runs from the tree, with the smallest sizes, without Ray and FastAPI."""

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "bench.py"
WITHOUT_SERVER = """
import runpy, sys
sys.modules.update(ray=None, fastapi=None)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_SERVER, str(TOOL), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_it_measures_all_sides_and_writes_figures_and_a_plot(tmp_path: Path) -> None:
    done = run("--preset", "smoke", "--skip-transformers", "--roofline", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Burst" in done.stdout
    result = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    one, _, left_out, ours = result["burst"].values()
    assert one["tokens"] == ours["tokens"] > 0
    assert left_out == {"not_available": "left out"}
    assert ours["ttft_p50_ms"] > 0
    assert ours["decode_steps"] <= one["decode_steps"]
    assert result["turns_with_reuse"][1]["cached_tokens"] > result["turns_without_reuse"][1]["cached_tokens"] == 0
    assert result["ratios"]["throughput to (a)"] > 0
    assert {"decode, batch 1, tokens/s", "first token from a decoded picture, ms"} <= result["roofline"].keys()
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_short_soak_leaks_nothing(tmp_path: Path) -> None:
    done = run("--preset", "smoke", "--soak", "0.05", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))["soak"]
    assert (found["leaked_blocks"], found["leaked_slots"]) == (0, 0)
    assert found["whole"] > 0
