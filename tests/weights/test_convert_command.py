"""``minigpt4 convert`` as a command: an error is one message and exit code 1, and leaves no folder."""

import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from minigpt4_serve import cli
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.prompt.variants import VARIANTS
from minigpt4_serve.weights.hub import MODELS
from minigpt4_serve.weights.load import DTYPES
from minigpt4_serve.weights.writer import atomic_folder

CHECKPOINTS = {
    "vicuna": "pretrained_minigpt4_vicuna_tiny.pth",
    "llama2": "pretrained_minigpt4_llama2_tiny.pth",
    "v2": "minigptv2_checkpoint_tiny.pth",
}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(golden: Path, tmp_path: Path) -> Path:
    """A copy of the original's files that a test may damage."""
    for part in ("weights", "llm"):
        shutil.copytree(golden / part, tmp_path / part)
    return tmp_path


def words(files: Path, variant: str = "llama2", **changes: str | None) -> list[str]:
    """The command's arguments; a change of None leaves an option out."""
    options: dict[str, str | None] = {
        "variant": variant,
        "llm": str(files / "llm" / ("vicuna-tiny" if variant == "vicuna" else "llama2-tiny")),
        "vit": str(files / "weights" / "eva_vit_g.pth"),
        "qformer": str(files / "weights" / "blip2_pretrained_flant5xxl.pth") if variant == "vicuna" else None,
        "checkpoint": str(files / "weights" / CHECKPOINTS[variant]),
        "vit-heads": "4",
        "vit-depth": "3",
        "qformer-heads": "4",
        "image-size": "84" if variant == "v2" else None,
    }
    given = {**options, **changes}
    pairs = [(f"--{name}", value) for name, value in given.items() if value is not None]
    return ["convert", *(word for pair in pairs for word in pair), str(files / "made" / "model")]


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    edit(content.get("model", content))
    torch.save(content, path)


def test_help_names_all_variants_dtypes_and_published_models() -> None:
    shown = CliRunner().invoke(cli.app, ["convert", "--help"], terminal_width=500).output
    for name in (*VARIANTS, *DTYPES, *MODELS):
        assert re.search(rf"\b{name}\b", shown), name


class Malice:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def truncated(files: Path) -> list[str]:
    os.truncate(files / "weights" / "eva_vit_g.pth", 500_000)
    return words(files)


def malicious(files: Path) -> list[str]:
    torch.save({"model": {"llama_proj.weight": Malice(files / "owned")}}, files / "weights" / CHECKPOINTS["llama2"])
    return words(files)


def bare_pickle(files: Path) -> list[str]:
    (files / "weights" / "eva_vit_g.pth").write_bytes(pickle.dumps(Malice(files / "owned")))
    return words(files)


def wrong_variant(files: Path) -> list[str]:
    return words(files, checkpoint=str(files / "weights" / CHECKPOINTS["v2"]))


def missing_shard(files: Path) -> list[str]:
    (files / "llm" / "vicuna-tiny-bin" / "pytorch_model-00001-of-00002.bin").unlink()
    return words(files, "vicuna", llm=str(files / "llm" / "vicuna-tiny-bin"))


def renamed_key(files: Path) -> list[str]:
    change(files / "weights" / "eva_vit_g.pth", lambda t: t.__setitem__("blocks.x.bias", t.pop("blocks.0.attn.q_bias")))
    return words(files)


def wrong_size(files: Path) -> list[str]:
    change(files / "weights" / CHECKPOINTS["llama2"], lambda t: t.update({"llama_proj.weight": torch.ones(5120, 352)}))
    return words(files)


def delta(files: Path) -> list[str]:
    path = files / "llm" / "vicuna-tiny" / "model.safetensors"
    save_file({name: tensor * 1e-3 for name, tensor in load_file(path).items()}, path)
    return words(files, "vicuna")


def half_lora(files: Path) -> list[str]:
    name = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    change(files / "weights" / CHECKPOINTS["v2"], lambda tensors: tensors.pop(name))
    return words(files, "v2")


def web_page(files: Path) -> list[str]:
    (files / "weights" / CHECKPOINTS["llama2"]).write_text("<html>Virus scan warning</html>")
    return words(files)


def other_archive(files: Path) -> list[str]:
    shutil.make_archive(str(files / "weights"), "zip", files / "llm" / "llama2-tiny")
    return words(files, vit=str(files / "weights.zip"))


def configure(files: Path, **settings: Any) -> list[str]:
    path = files / "llm" / "llama2-tiny" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **settings}))
    return words(files)


def quantized_llm(files: Path) -> list[str]:
    return configure(files, quantization_config={"quant_method": "gptq", "bits": 4})


def heads_that_do_not_divide(files: Path) -> list[str]:
    return configure(files, num_attention_heads=5)


def unknown_activation(files: Path) -> list[str]:
    return configure(files, hidden_act="nonsense")


def damaged_index(files: Path) -> list[str]:
    (files / "llm" / "llama2-tiny" / "model.safetensors.index.json").write_text("[1]")
    return words(files)


def infinite(files: Path) -> list[str]:
    change(files / "weights" / "eva_vit_g.pth", lambda tensors: tensors["cls_token"].fill_(float("nan")))
    return words(files)


def existing_output(files: Path) -> list[str]:
    (files / "made" / "model").mkdir(parents=True)
    (files / "made" / "model" / "thesis.tex").touch()
    return words(files)


def no_disk(files: Path) -> list[str]:
    return [*words(files)[:-1], "/proc/model"]


WRONG: list[tuple[Callable[[Path], list[str]], str]] = [
    (truncated, "eva_vit_g.pth is cut short"),
    (malicious, "holds Python code, not only tensors"),
    (bare_pickle, "eva_vit_g.pth"),
    (wrong_variant, "use --variant v2"),
    (missing_shard, "pytorch_model-00001-of-00002.bin is missing"),
    (renamed_key, "missing: vision_model.encoder.layers.0.self_attn.qkv.bias"),
    (wrong_size, "hidden size 5120 (13B), but --llm has 64"),
    (delta, "delta weights"),
    (half_lora, "unexpected: language_model.model.layers.0.self_attn.q_proj.lora_B.weight"),
    (web_page, "not a PyTorch checkpoint"),
    (other_archive, "weights.zip"),
    (quantized_llm, "quantized weights"),
    (heads_that_do_not_divide, "config.json is damaged"),
    (unknown_activation, "describes no LLaMA that can be built"),
    (damaged_index, "index.json is damaged"),
    (infinite, "holds numbers that are infinite"),
    (existing_output, "exists already"),
    (no_disk, "can't be written"),
    (lambda files: words(files, llm="nowhere"), "no folder nowhere"),
    (lambda files: words(files, checkpoint="nowhere.pth"), "no file nowhere.pth"),
    (lambda files: words(files, vit=str(files / "weights")), "no file"),
    (lambda files: ["convert", "--variant", "v3", *words(files)[3:]], "variant must be"),
    (lambda files: words(files, llm=None, vit=None), "Give --llm, --vit, or --from-hub NAME"),
    (lambda files: words(files, **{"from-hub": "v2-7b"}), "leave --variant out"),
    (lambda files: words(files, dtype="int8"), "dtype must be"),
    (lambda files: words(files, **{"vit-heads": "5"}), "--vit-heads 5 doesn't divide"),
    (lambda files: words(files, **{"vit-depth": "-1"}), "--vit-depth must be more than 0"),
    (lambda files: words(files, **{"image-size": "70"}), "70 pixels make 25 patches"),
    (lambda files: ["convert", "--keep-lora", *words(files)[1:]], "has no LoRA"),
]


@pytest.mark.parametrize(("damage", "message"), WRONG, ids=[message for _, message in WRONG])
def test_errors_are_one_message_and_leave_nothing(
    files: Path,
    damage: Callable[[Path], list[str]],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["minigpt4", *damage(files)])
    before = sorted(files.glob("made/**/*"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    first, *names = [line for line in printed.err.splitlines() if not line.startswith("•")]
    assert first.startswith("minigpt4: ")
    assert all(line.startswith(("  missing: ", "  unexpected: ")) for line in names)
    assert message in printed.err
    assert sorted(files.glob("made/**/*")) in (before, [files / "made"])
    assert not (files / "owned").exists()


# --- interrupted processes ---

PAUSED = """
import sys
from minigpt4_serve import cli
from minigpt4_serve.cli import convert

def wait_in_the_middle(item, done, total):
    if item.startswith("writing") and 2 * done > total:
        print("in the middle", flush=True)
        sys.stdin.read()

convert.show_bytes = wait_in_the_middle
cli.main()
"""


def start(code: str, arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, text=True, **pipes, **options)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_leaves_nothing_that_looks_whole(files: Path, number: int, code: int) -> None:
    made = files / "made"
    with start(PAUSED, words(files)) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "in the middle\n"
        assert [path.name.startswith(".model.") for path in made.iterdir()] == [True]
        running.send_signal(number)
        _, errors = running.communicate(timeout=280)
    assert running.returncode == code
    assert "Traceback" not in errors
    if number == signal.SIGKILL:
        # Only the next run for the same folder can clean up after SIGKILL.
        assert len(list(made.iterdir())) == 1
        with atomic_folder(made / "model", needs=0) as folder:
            assert list(made.iterdir()) == [folder]
    else:
        assert list(made.iterdir()) == []


def test_concurrent_runs_for_one_folder_do_not_interfere(tmp_path: Path) -> None:
    out = tmp_path / "model"

    def both() -> None:
        with atomic_folder(out, needs=0) as slow, atomic_folder(out, needs=0) as quick:
            (quick / "whose").write_text("quick")
            assert slow.is_dir()

    with pytest.raises(InvalidRequest, match="can't be written"):  # the slower one finishes last
        both()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "whose").read_text() == "quick"


def test_a_limit_on_the_size_of_files(files: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    with start("from minigpt4_serve.cli import main; main()", words(files), preexec_fn=limit) as running:
        _, errors = running.communicate(timeout=280)
    assert running.returncode == 1
    assert errors.splitlines()[-1].startswith(f"minigpt4: {files / 'made' / 'model'} can't hold files as large")
    assert list((files / "made").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user id")
def test_a_folder_without_write_permission() -> None:
    """Runs as an unprivileged user, since root can write everywhere."""
    code = (
        "import tempfile, pathlib, sys; from minigpt4_serve.weights.writer import atomic_folder\n"
        "import os; place = pathlib.Path(tempfile.mkdtemp()); place.chmod(0o755); os.setuid(65534)\n"
        "from minigpt4_serve.errors import InvalidRequest\n"
        "try:\n    atomic_folder(place / 'model', needs=1).__enter__()\n"
        "except InvalidRequest as error:\n    print(error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert "can't be written; choose another output folder" in done.stdout


MEASURED = """
import resource, sys
from pathlib import Path
from minigpt4_serve.weights.convert import convert
from minigpt4_serve.weights.infer_config import Hyperparameters

root = Path(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
files = {name: root / "weights" / file for name, file in (("vit", "eva_vit_g.pth"), ("checkpoint", "large.pth"))}
dimensions = Hyperparameters(vit_heads=4, vit_depth=3)
convert(variant="llama2", llm=root / "llm" / "large", out=root / "model", hyperparameters=dimensions, **files)
print(peak() - before)
"""


def test_memory_stays_near_one_copy_of_the_model(files: Path) -> None:
    """Mapped inputs count as used memory while they are read; one shard is allocated beside them."""
    llm = files / "llm" / "large"
    width = 768
    inner = 3072
    layers = 12
    llm.mkdir()
    shutil.copy(files / "llm" / "llama2-tiny" / "tokenizer.model", llm)
    config = json.loads((files / "llm" / "llama2-tiny" / "config.json").read_text(encoding="utf-8"))
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 8}
    (llm / "config.json").write_text(json.dumps({**config, **sizes, "num_key_value_heads": 8, "head_dim": width // 8}))
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (width,)}
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (512, width))
    for i in range(layers):
        p = f"model.layers.{i}"
        shapes |= {f"{p}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        shapes |= {f"{p}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{p}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{p}.mlp.down_proj.weight": (width, inner)}
    tensors = {name: torch.ones(shape, dtype=torch.float16) for name, shape in shapes.items()}
    model_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert model_bytes > 200 * 2**20
    torch.save(tensors, llm / "pytorch_model.bin")
    trained = {"llama_proj.weight": torch.ones(width, 352), "llama_proj.bias": torch.ones(width)}
    torch.save({"model": trained}, files / "weights" / "large.pth")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(files)], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert int(done.stdout) < 1.5 * model_bytes
    assert len(list((files / "model").glob("*.safetensors"))) == 9


# --- Python code in an LLM's folder ---


@pytest.mark.parametrize(("model_type", "code"), [("llama", 0), ("stranger", 1)])
def test_a_folders_own_python_never_runs(files: Path, model_type: str, code: int) -> None:
    llm = files / "llm" / "llama2-tiny"
    (llm / "code_of_a_stranger.py").write_text(f"import os; os.mkdir({str(files / 'owned')!r})\nclass Config: ...\n")
    auto_map = {"AutoConfig": "code_of_a_stranger.Config", "AutoTokenizer": "code_of_a_stranger.Config"}
    configure(files, auto_map=auto_map, model_type=model_type)
    ended = run(*words(files), stdin="y\n" * 8)
    assert ended.returncode == code, ended.stderr
    assert "[y/N]" not in ended.stdout + ended.stderr
    assert ("type 'stranger'" in ended.stderr) == bool(code)
    assert not (files / "owned").exists()
