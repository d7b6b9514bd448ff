"""Rehearse a researcher's first hour with random files as large as the published ones: convert, doctor, serve, ask.

    python -m tools.rehearsal /scratch/rehearsal

writes the files of a 7B model in the original's layout (Vicuna in two float16 shards, eva_vit_g, Q-Former, projection)
to the folder, converts them to bfloat16, examines and serves the result on CPUs, and asks one question over HTTP. At
the end it prints a Markdown table with the minutes and the peak memory of each step. It takes
35 GB of disk, 20 GiB of memory and about an hour on two cores. ``--size small`` does the same in minutes, for tests.

The answers are noise: the numbers are random, and the vocabulary is the embedded model's.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import httpx
import torch
import yaml

from minigpt4_serve.images import image_url_part
from minigpt4_serve.memory import gib
from minigpt4_serve.process_tree import descendants
from minigpt4_serve.settings import TINY_MODEL

__all__ = ["SIZES", "Sizes", "llm_shapes", "main", "qformer_shapes", "vision_shapes"]

Shapes = dict[str, tuple[int, ...]]

_BLOCK = 2**22  # random numbers that are repeated: drawing seven billion takes minutes
_SAMPLE_S = 0.5
_READY = "Ready: "
_REQUEST_TIMEOUT_S = 3600
_STOP_TIMEOUT_S = 120


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a model's files; the defaults are those of the published 7B model.

    Attributes:
        vit_width, vit_mlp, vit_blocks, vit_heads: of ``eva_vit_g.pth``, whose last block isn't used.
        qformer_width, qformer_layers, qformer_heads: of BLIP-2's Q-Former.
        llm_layers, llm_width, llm_mlp, llm_heads, rows, context: of the LLM.
    """

    vit_width: int = 1408
    vit_mlp: int = 6144
    vit_blocks: int = 40
    vit_heads: int = 16
    qformer_width: int = 768
    qformer_layers: int = 12
    qformer_heads: int = 12
    llm_layers: int = 32
    llm_width: int = 4096
    llm_mlp: int = 11008
    llm_heads: int = 32
    rows: int = 32000
    context: int = 2048


SIZES = {
    "7b": Sizes(),
    "small": Sizes(
        vit_width=64,
        vit_mlp=128,
        vit_blocks=3,
        vit_heads=4,
        qformer_width=64,
        qformer_layers=2,
        qformer_heads=4,
        llm_layers=2,
        llm_width=128,
        llm_mlp=256,
        llm_heads=4,
        rows=1000,
        context=512,
    ),
}


def vision_shapes(sizes: Sizes) -> Shapes:
    """Keys and shapes of ``eva_vit_g.pth``."""
    width = sizes.vit_width
    mlp = sizes.vit_mlp
    shapes: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 257, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    for i in range(sizes.vit_blocks):
        b = f"blocks.{i}"
        shapes |= {f"{b}.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        shapes |= {f"{b}.attn.{part}_bias": (width,) for part in "qv"}
        shapes |= {f"{b}.attn.qkv.weight": (3 * width, width)}
        shapes |= {f"{b}.attn.proj.weight": (width, width), f"{b}.attn.proj.bias": (width,)}
        shapes |= {f"{b}.mlp.fc1.weight": (mlp, width), f"{b}.mlp.fc1.bias": (mlp,)}
        shapes |= {f"{b}.mlp.fc2.weight": (width, mlp), f"{b}.mlp.fc2.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    return shapes | {"head.weight": (1024, width), "head.bias": (1024,)}


def qformer_shapes(sizes: Sizes) -> Shapes:
    """Keys and shapes of ``blip2_pretrained_flant5xxl.pth``."""
    width = sizes.qformer_width
    image = sizes.vit_width
    shapes: Shapes = {"query_tokens": (1, 32, width), "ln_vision.weight": (image,), "ln_vision.bias": (image,)}
    bert = "Qformer.bert."
    norm = ("LayerNorm.weight", "LayerNorm.bias")
    shapes |= {f"{bert}embeddings.{part}": (width,) for part in norm} | {f"{bert}embeddings.position_ids": (1, 512)}
    for i in range(sizes.qformer_layers):
        for attention in ("attention", "crossattention")[: 2 - i % 2]:
            a = f"{bert}encoder.layer.{i}.{attention}"
            for name in ("query", "key", "value"):
                inner = image if attention == "crossattention" and name != "query" else width
                shapes |= {f"{a}.self.{name}.weight": (width, inner), f"{a}.self.{name}.bias": (width,)}
            shapes |= {f"{a}.output.dense.weight": (width, width), f"{a}.output.dense.bias": (width,)}
            shapes |= {f"{a}.output.{part}": (width,) for part in norm}
        f = f"{bert}encoder.layer.{i}"
        shapes |= {f"{f}.intermediate_query.dense.weight": (4 * width, width)}
        shapes |= {f"{f}.intermediate_query.dense.bias": (4 * width,)}
        shapes |= {f"{f}.output_query.dense.weight": (width, 4 * width), f"{f}.output_query.dense.bias": (width,)}
        shapes |= {f"{f}.output_query.{part}": (width,) for part in norm}
    return shapes | {"t5_proj.weight": (4096, width), "t5_proj.bias": (4096,)}


def llm_shapes(sizes: Sizes) -> Shapes:
    """Keys and shapes of a LLaMA in Hugging Face layout."""
    width = sizes.llm_width
    mlp = sizes.llm_mlp
    shapes: Shapes = {"model.embed_tokens.weight": (sizes.rows, width)}
    for i in range(sizes.llm_layers):
        p = f"model.layers.{i}"
        shapes |= {f"{p}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{p}.mlp.gate_proj.weight": (mlp, width), f"{p}.mlp.up_proj.weight": (mlp, width)}
        shapes |= {f"{p}.mlp.down_proj.weight": (width, mlp)}
        shapes |= {f"{p}.self_attn.rotary_emb.inv_freq": (width // sizes.llm_heads // 2,)}
        shapes |= {f"{p}.{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (sizes.rows, width)}


def write_files(folder: Path, sizes: Sizes) -> None:
    """Write random files in the original's layout: ``llm/``, ``vit.pth``, ``qformer.pth`` and ``checkpoint.pth``."""
    llm = folder / "llm"
    llm.mkdir(parents=True)
    shutil.copy(TINY_MODEL / "tokenizer.model", llm)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float16",
        "vocab_size": sizes.rows,
        "hidden_size": sizes.llm_width,
        "intermediate_size": sizes.llm_mlp,
        "num_hidden_layers": sizes.llm_layers,
        "num_attention_heads": sizes.llm_heads,
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": 1e-6,
    }
    (llm / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes = llm_shapes(sizes)
    keys = list(shapes)
    middle = len(keys) * 2 // 3
    weight_map: dict[str, str] = {}
    for number, shard in enumerate((keys[:middle], keys[middle:]), start=1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        weight_map |= dict.fromkeys(shard, name)
        torch.save(_random({key: shapes[key] for key in shard}, torch.float16), llm / name)
    (llm / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    torch.save(_random(vision_shapes(sizes), torch.float16), folder / "vit.pth")
    torch.save({"model": _random(qformer_shapes(sizes), torch.float32)}, folder / "qformer.pth")
    projection = {
        "llama_proj.weight": (sizes.llm_width, sizes.qformer_width),
        "llama_proj.bias": (sizes.llm_width,),
    }
    torch.save({"model": _random(projection, torch.float32), "epoch": 0}, folder / "checkpoint.pth")


def _random(shapes: Shapes, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).mul(0.02).to(dtype)
    tensors: dict[str, torch.Tensor] = {}
    for key, shape in shapes.items():
        count = prod(shape)
        if "norm" in key.lower() and key.endswith("weight"):
            tensors[key] = torch.ones(shape, dtype=dtype)
        else:
            tensors[key] = block.repeat(count // _BLOCK + 1)[:count].reshape(shape).clone()
    return tensors


@dataclass
class Step:
    """One step's figures.

    Attributes:
        seconds: wall time.
        rss: peak of the resident memory of all its processes, in bytes; mapped files count as far as they are resident.
        anonymous: peak of the part that isn't backed by files, which must fit into memory.
    """

    name: str
    seconds: float = 0.0
    rss: int = 0
    anonymous: int = 0


@dataclass
class Rehearsal:
    """Runs the steps and collects their figures."""

    folder: Path
    sizes: Sizes
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Measure a step: its time, and the memory of this process and all descendants."""
        step = Step(name)
        print(f"{name} …", flush=True)
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(_SAMPLE_S):
                rss, anonymous = _memory()
                step.rss = max(step.rss, rss)
                step.anonymous = max(step.anonymous, anonymous)

        sampler = threading.Thread(target=sample)
        sampler.start()
        begin = time.monotonic()
        try:
            yield
        finally:
            step.seconds = time.monotonic() - begin
            ended.set()
            sampler.join()
        self.steps.append(step)
        print(f"{name}: {step.seconds / 60:.1f} minutes, {gib(step.rss)} ({gib(step.anonymous)} anonymous)", flush=True)

    def run(self) -> None:
        """All steps.

        Raises:
            subprocess.CalledProcessError: a command failed.
            httpx.HTTPError: no answer.
        """
        parts = self.folder / "parts"
        model = self.folder / "model"
        if not (parts / "checkpoint.pth").is_file():
            shutil.rmtree(parts, ignore_errors=True)
            with self.measured("write random files"):
                write_files(parts, self.sizes)
        shutil.rmtree(model, ignore_errors=True)
        roles = {"--llm": "llm", "--vit": "vit.pth", "--qformer": "qformer.pth", "--checkpoint": "checkpoint.pth"}
        options = [str(part) for option, name in roles.items() for part in (option, parts / name)]
        options += ["--vit-heads", str(self.sizes.vit_heads), "--vit-depth", str(self.sizes.vit_blocks - 1)]
        options += ["--qformer-heads", str(self.sizes.qformer_heads), "--variant", "vicuna", "--dtype", "bfloat16"]
        with self.measured("convert"):
            _run("convert", str(model), *options)
        with self.measured("doctor"):
            _run("doctor", "--model", str(model), "--device", "cpu", "--dtype", "bfloat16")
        self._serve(model)

    def _serve(self, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = {
            "model": {"path": str(model), "device": "cpu", "dtype": "bfloat16"},
            "engine": {"max_running": 1, "kv_cache_bytes": 2**30, "step_timeout_s": _REQUEST_TIMEOUT_S},
            "port": port,
            "max_request_s": _REQUEST_TIMEOUT_S,
        }
        config = self.folder / "serve.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [_COMMAND, "serve", "--config", str(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - our own command
            try:
                with self.measured("start `serve`"):
                    assert server.stdout is not None
                    if not any(line.startswith(_READY) for line in server.stdout):
                        raise subprocess.CalledProcessError(server.wait(), command)
                with self.measured("one answer over HTTP (8 tokens)"):
                    print(_ask(f"http://127.0.0.1:{port}/v1/chat/completions"), flush=True)
            finally:
                server.terminate()
                server.wait(_STOP_TIMEOUT_S)


_COMMAND = str(Path(sys.executable).with_name("minigpt4"))


def _run(*arguments: str) -> None:
    subprocess.run([_COMMAND, *arguments], check=True)  # noqa: S603 - our own command


def _ask(url: str) -> str:
    """The usage of an answer about the example image."""
    content = [
        image_url_part((TINY_MODEL / "example.png").read_bytes()),
        {"type": "text", "text": "What is in this picture?"},
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
    with httpx.Client(timeout=_REQUEST_TIMEOUT_S, trust_env=False) as client:
        response = client.post(url, json=body)
    response.raise_for_status()
    return str(response.json()["usage"])


def _memory() -> tuple[int, int]:
    """(resident, anonymous resident) bytes of this process's descendants and itself."""
    resident = anonymous = 0
    for pid in [*descendants(), "self"]:
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue  # it has ended
        values = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "RssAnon")))
        resident += _kilobytes(values, "VmRSS")
        anonymous += _kilobytes(values, "RssAnon")
    return resident, anonymous


def _kilobytes(values: Mapping[str, str], name: str) -> int:
    return int(values[name].split()[0]) * 1024 if name in values else 0


def table(steps: Sequence[Step]) -> str:
    """The figures as a Markdown table."""
    rows = ["| step | minutes | peak RSS | of it anonymous |", "|---|---|---|---|"]
    rows += [f"| {one.name} | {one.seconds / 60:.1f} | {gib(one.rss)} | {gib(one.anonymous)} |" for one in steps]
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.rehearsal", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for the files; parts that are there already are used again")
    parser.add_argument("--size", choices=SIZES, default="7b")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    rehearsal = Rehearsal(options.folder, SIZES[options.size])
    try:
        rehearsal.run()
    except (subprocess.CalledProcessError, httpx.HTTPError) as error:
        print(f"Failed: {error}", file=sys.stderr)
        return 1
    finally:
        print(table(rehearsal.steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
