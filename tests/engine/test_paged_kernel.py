"""The Triton kernel without a GPU: results under Triton's interpreter, compilation for two GPU generations."""

import os
import subprocess
import sys
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton comes with PyTorch on Linux only")

INTERPRETED = """
import torch
from minigpt4_serve.engine.attention import SequenceAttention
from minigpt4_serve.engine.paged_kernel import paged_decode

worst = 0.0
generator = torch.Generator().manual_seed(0)
cases = [
    # heads, kv_heads, head_dim, block_size, lengths
    (4, 4, 16, 16, [1, 16, 17, 40]),
    (8, 2, 32, 8, [5, 24, 1]),
    (6, 2, 24, 16, [33, 7]),  # neither the group nor the head is a power of two
    (2, 1, 128, 4, [3]),
    (2, 2, 16, 5, [64, 65, 150, 3]),  # several tiles, and blocks that don't divide them
]
for heads, kv_heads, head_dim, block_size, lengths in cases:
    blocks = sum(-(-length // block_size) for length in lengths) + 1
    cache = torch.randn(2, blocks, block_size, kv_heads, head_dim, generator=generator)
    cache[:, -1] = float("nan")  # a block outside of all tables must never be read
    order = iter(torch.randperm(blocks - 1, generator=generator).tolist())
    tables = [[next(order) for _ in range(-(-length // block_size))] for length in lengths]
    width = max(map(len, tables)) + 1
    padded = torch.tensor([table + [blocks - 1] * (width - len(table)) for table in tables])
    query = torch.randn(len(lengths), heads, head_dim, generator=generator)
    got = paged_decode(query, cache[0], cache[1], padded, torch.tensor(lengths))
    for i, (table, length) in enumerate(zip(tables, lengths)):
        attention = SequenceAttention(table, start=length - 1, end=length, device=query.device)
        worst = max(worst, float((got[i : i + 1] - attention.attend(query[i : i + 1], cache)).abs().max()))
    # A padding row of a CUDA graph: length 0 gives zeros, not NaN.
    padding = paged_decode(query[:1], cache[0], cache[1], padded[:1], torch.tensor([0]))
    assert not padding.any(), padding
print(worst)
"""


def test_the_kernel_agrees_with_sdpa() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 2e-6


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    "shape",
    [
        {"kv_heads": 32, "group": 1, "group_pad": 1, "head_dim": 128, "dim_pad": 128},  # 7B
        {"kv_heads": 8, "group": 3, "group_pad": 4, "head_dim": 96, "dim_pad": 128},
    ],
)
def test_the_kernel_compiles_without_a_gpu(
    capability: int, shape: dict[str, Any], tmp_path: Any, monkeypatch: Any
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from minigpt4_serve.engine.paged_kernel import paged_decode_kernel, tile_size

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # its default is about to change, which is a warning
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # no kernels from earlier runs
    tensors = dict.fromkeys(("out", "query", "keys", "values"), "*bf16")
    signature = {**tensors, "tables": "*i64", "lengths": "*i64", "scale": "fp32", "max_blocks": "i32"}
    constants = {**shape, "block_size": 16, "tile": tile_size(shape["group"])}
    source = ASTSource(
        fn=paged_decode_kernel, signature={**signature, **dict.fromkeys(constants, "constexpr")}, constexprs=constants
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f"sm_{capability}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]
