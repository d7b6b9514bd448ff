import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity", Path(__file__).parents[2] / "tools" / "parity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", ["v1_vicuna", "v1_llama2", "v2"])
def test_every_stage_equals_the_original(
    parity: ModuleType, golden: Path, scratch: Path, variant: str, attention: str
) -> None:
    rows = list(parity.compare(golden, variant, attention, scratch / variant))
    assert len(rows) > 25
    assert [str(row) for row in rows if not row.good] == []


def test_a_wrong_number_fails_the_run(
    parity: ModuleType, golden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parity, "STAGES", (parity.tokens, lambda _: [parity.Row("made up", error=1.0, limit=0.5)]))
    assert parity.main([str(golden), "--variant", "v1_vicuna"]) == 1
    printed = capsys.readouterr().out
    assert "made up" in printed
    assert "FAILED" in printed
    monkeypatch.setattr(parity, "STAGES", (parity.tokens,))
    assert parity.main([str(golden), "--variant", "v1_vicuna"]) == 0
