"""The rehearsal of a first hour: its files convert, and with a server its table is complete."""

from pathlib import Path

import pytest

from minigpt4_serve.weights.convert import convert
from minigpt4_serve.weights.infer_config import Hyperparameters
from tools.rehearsal import SIZES, main, write_files


def test_random_files_in_the_original_layout_convert(tmp_path: Path) -> None:
    sizes = SIZES["small"]
    write_files(tmp_path, sizes)
    made = convert(
        variant="vicuna",
        llm=tmp_path / "llm",
        vit=tmp_path / "vit.pth",
        qformer=tmp_path / "qformer.pth",
        checkpoint=tmp_path / "checkpoint.pth",
        out=tmp_path / "model",
        dtype="bfloat16",
        hyperparameters=Hyperparameters(
            vit_heads=sizes.vit_heads, vit_depth=sizes.vit_blocks - 1, qformer_heads=sizes.qformer_heads
        ),
    )
    assert made.config.text_config.num_hidden_layers == sizes.llm_layers
    assert made.config.vision_config.num_hidden_layers == sizes.vit_blocks - 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.ray
@pytest.mark.e2e
def test_every_step_is_in_the_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--size", "small"]) == 0
    output = capfd.readouterr().out
    table = [line for line in output.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5
    assert "completion_tokens" in output
    assert all("GiB" in row or "MiB" in row for row in table[2:])
