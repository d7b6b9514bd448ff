"""The stages of a training run, with the small model of ``configs/smoke.yaml``: each resumes exactly after SIGKILL."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from training_runs import train_until_killed

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.settings import TINY_MODEL
from tools.tiny.config import TrainConfig
from tools.tiny.evaluate import answers, load
from tools.tiny.language import OracleEncoder
from tools.tiny.questions import KINDS_OF_QUESTION, Dialogue
from tools.tiny.stages import AccuracyByKind, Run, fit_linear
from tools.tiny.train import main

ROOT = Path(__file__).parents[2]
STEPS = 7
CHECKPOINT_STEPS = 5


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """Training sets the number of threads, which other tests of this process shouldn't notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``smoke.yaml`` with paths from anywhere."""
    values = yaml.safe_load((ROOT / "tools" / "tiny" / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    assert values["checkpoint_steps"] == CHECKPOINT_STEPS
    file = tmp_path_factory.mktemp("config") / "smoke.yaml"
    file.write_text(yaml.safe_dump({**values, "tokenizer": str(ROOT / values["tokenizer"])}), encoding="utf-8")
    return file


def _arguments(config: Path, run: Path, *more: str) -> list[str]:
    return ["--config", str(config), "--run", str(run), "--steps", str(STEPS), *more]


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose stages were never interrupted."""
    run = tmp_path_factory.mktemp("finished")
    main(_arguments(config, run))
    return run


def _result(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def _assert_equal(one: object, other: object) -> None:
    """Equal bit for bit, whatever is nested in it."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    elif isinstance(one, dict):
        assert one.keys() == other.keys()  # type: ignore[attr-defined]
        for key in one:
            _assert_equal(one[key], other[key])  # type: ignore[index]
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)  # type: ignore[arg-type]
        for a, b in zip(one, other, strict=True):  # type: ignore[call-overload]
            _assert_equal(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("while_saving", [False, True], ids=["between-steps", "while-saving"])
@pytest.mark.parametrize(
    "stage",
    ["vision", pytest.param("language", marks=pytest.mark.slow), pytest.param("finetune", marks=pytest.mark.slow)],
)
def test_a_killed_stage_resumes_exactly(
    config: Path, finished: Path, tmp_path: Path, stage: str, while_saving: bool
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns(f"{stage}.pt", "model"))
    arguments = _arguments(config, run, "--stage", stage)
    assert train_until_killed(arguments, STEPS - 1, while_saving=while_saving) == -9
    killed = _result(run / f"{stage}.pt")
    assert len(killed["losses"]) == CHECKPOINT_STEPS
    assert (run / f"{stage}.pt.partial").exists() is while_saving
    main(arguments)
    resumed = _result(run / f"{stage}.pt")
    uninterrupted = _result(finished / f"{stage}.pt")
    assert len(set(resumed["losses"].tolist())) == STEPS
    _assert_equal(resumed, uninterrupted)


def test_rendering_again_gives_the_same_shards(config: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "shards", tmp_path / "shards")
    shard = tmp_path / "shards" / "scenes-0001.npy"
    shard.unlink()
    (tmp_path / "shards" / "scenes-0001.partial").write_bytes(b"half a shard")
    main(_arguments(config, tmp_path, "--stage", "render"))
    assert shard.read_bytes() == (finished / "shards" / "scenes-0001.npy").read_bytes()


def test_finished_stages_are_reported_and_skipped(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for stage in ("vision", "language", "fit-projection", "finetune"):
        main(_arguments(config, tmp_path / "run", "--stage", stage))
        assert capsys.readouterr().out == f"{stage}: finished\n"


def test_fitting_again_gives_the_same_projection(config: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("fit-projection.pt", "features.pt"))
    main(_arguments(config, tmp_path / "run", "--stage", "fit-projection"))
    for name in ("features.pt", "fit-projection.pt"):
        _assert_equal(_result(tmp_path / "run" / name), _result(finished / name))


def test_the_loss_falls_in_every_stage(finished: Path) -> None:
    for stage in ("vision", "language", "finetune"):
        losses = _result(finished / f"{stage}.pt")["losses"]
        assert losses[-3:].mean() < losses[:3].mean(), stage


def test_finetuning_leaves_the_vision_encoder_alone(finished: Path) -> None:
    names = _result(finished / "finetune.pt")["network"]
    assert {name.split(".")[0] for name in names} == {"language_model", "projection"}
    exported = load(finished / "model")[0].state_dict()
    vision = _result(finished / "vision.pt")["network"]
    for name in ("vision_model.embeddings.class_embedding", "query_tokens"):
        assert torch.equal(exported[name], vision[name].bfloat16().float())


def test_the_export_loads_and_repeats_its_self_test(finished: Path) -> None:
    folder = finished / "model"
    assert {path.name for path in TINY_MODEL.iterdir()} - {path.name for path in folder.iterdir()} == {"README.md"}
    self_test = json.loads((folder / "selftest.json").read_text(encoding="utf-8"))
    with Image.open(folder / self_test["image"]) as image:
        question = Dialogue("short", ((self_test["question"], ""),))
        assert answers(*load(folder), [(image, question)]) == [self_test["answer"]]


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("vision", "render"), ("fit-projection", "vision"), ("finetune", "fit-projection"), ("export", "fit-projection")],
)
def test_a_stage_names_the_missing_earlier_stage(
    config: Path, tmp_path: Path, stage: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(_arguments(config, tmp_path, "--stage", stage))
    assert ended.value.code == 2
    assert f"run the stage '{missing}' first" in capsys.readouterr().err


def test_an_unfinished_stage_is_not_built_upon(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("fit-projection.pt", "features.pt"))
    state = _result(run / "vision.pt")
    torch.save({**state, "losses": state["losses"][:4]}, run / "vision.pt")
    with pytest.raises(SystemExit):
        main(_arguments(config, run, "--stage", "fit-projection"))
    assert f"'vision' has done 4 of {STEPS} steps: resume it first" in capsys.readouterr().err


def test_results_of_other_settings_are_refused(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["--config", str(config), "--run", str(tmp_path / "run"), "--steps", "9", "--stage", "vision"])
    assert "was made with other settings in 'vision'" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_diverging_stage_ends_with_one_sentence(
    config: Path, finished: Path, tmp_path: Path, processes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["vision"] |= {"processes": processes, "loss_weights": {"background": 1e300}}
    diverging = tmp_path / "diverging.yaml"
    diverging.write_text(yaml.safe_dump(values), encoding="utf-8")
    shutil.copytree(finished / "shards", tmp_path / "run" / "shards")
    with pytest.raises(SystemExit) as ended:
        main(_arguments(diverging, tmp_path / "run", "--stage", "vision"))
    assert ended.value.code == 2
    (sentence,) = capfd.readouterr().err.splitlines()
    assert sentence.startswith("The loss of step 0 of vision is inf: lower the learning rate and start")


def test_a_tokenizer_of_other_settings_is_refused(config: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("shards", "model", "*.pt"))
    given = TrainConfig.read(config)
    assert Run(given, tmp_path / "run").tokenizer().vocab_size == given.model.vocabulary_size
    trained = given.model_copy(update={"tokenizer": None})
    with pytest.raises(InvalidRequest, match=r"tokenizer\.model was made with other settings"):
        Run(trained, tmp_path / "run").tokenizer()


def test_shards_of_another_size_are_refused(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["data"]["shard_size"] = 41
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(values), encoding="utf-8")
    shutil.copytree(finished / "shards", tmp_path / "run" / "shards")
    with pytest.raises(SystemExit):
        main(_arguments(other, tmp_path / "run", "--stage", "vision"))
    assert "holds 40 images, not 41" in capsys.readouterr().err


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that continues from the embedded model, at a learning rate of next to nothing."""
    stage = {"steps": 1, "learning_rate": 1e-9}
    values = {
        "initialize": {"model": str(TINY_MODEL), "heads": str(ROOT / "tools" / "tiny" / "heads.safetensors")},
        "data": {"shard_size": 40, "dense_shards": 1, "vision_shards": 1, "language_shards": 1}
        | {"validation_images": 30},
        "render_processes": 1,
        "vision": {**stage, "batch_size": 4, "dense_batch_size": 4, "noise_pool": 4},
        "fit_projection": {"images": 40},
        "finetune": {**stage, "scenes_per_step": 2},
    }
    file = tmp_path_factory.mktemp("continued") / "config.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def test_a_run_continues_from_the_embedded_model(
    continued: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--config", str(continued), "--run", str(tmp_path)])
    log = {line.split(":")[0]: line for line in capsys.readouterr().out.splitlines() if ":" in line}
    accuracy = dict(part.split() for part in log["vision"].split("accuracy: ")[1].split(", "))
    assert float(accuracy["kind"]) > 0.9  # the committed heads belong to the committed vision encoder
    assert float(log["fit-projection"].split()[-1]) > 0.99  # R² between what the projection gives and gave
    self_test = json.loads((tmp_path / "model" / "selftest.json").read_text(encoding="utf-8"))
    embedded = json.loads((TINY_MODEL / "selftest.json").read_text(encoding="utf-8"))
    assert sorted(self_test["answer"].split()) == sorted(embedded["answer"].split())


def test_initial_weights_of_other_dimensions_are_refused(
    continued: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(continued.read_text(encoding="utf-8"))
    file = tmp_path / "wider.yaml"
    file.write_text(yaml.safe_dump({**values, "model": {"language_width": 216}}), encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["--config", str(file), "--run", str(tmp_path / "run"), "--stage", "vision"])
    assert "don't fit the dimensions of the section 'model'" in capsys.readouterr().err


def test_a_run_trains_its_vocabulary_once(config: Path, tmp_path: Path) -> None:
    run = Run(TrainConfig.read(config).model_copy(update={"tokenizer": None}), tmp_path)
    tokenizer = run.tokenizer()
    assert tokenizer.vocab_size == run.config.model.vocabulary_size
    OracleEncoder(8, tokenizer)  # needs a single token for every word that describes a scene
    assert {file.name for file in tmp_path.iterdir()} == {"tokenizer.model", "tokenizer.json"}
    file = tmp_path / "tokenizer.model"
    written = file.stat().st_mtime_ns
    run.tokenizer()
    assert file.stat().st_mtime_ns == written


def test_half_known_kinds_are_sampled_more() -> None:
    accuracy = AccuracyByKind()
    assert accuracy.sampling_weights() == pytest.approx({kind: 1.3 * w for kind, w in KINDS_OF_QUESTION.items()})
    accuracy.update({"color": [True, True], "where": [True, False], "count": [False]})
    assert accuracy.accuracy == {"color": 1.0, "where": 0.5, "count": 0.0}
    weights = {kind: weight / KINDS_OF_QUESTION[kind] for kind, weight in accuracy.sampling_weights().items()}
    assert weights["where"] > weights["color"] == weights["count"] == pytest.approx(0.3)
    accuracy.update({"color": [False]})
    assert accuracy.accuracy["color"] == pytest.approx(0.97)


@torch.no_grad()
def test_ridge_regression_recovers_a_linear_map() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(50, 3, 6)
    truth = torch.nn.Linear(6, 4)
    layer = torch.nn.Linear(6, 4)
    assert fit_linear(layer, inputs, truth(inputs), 1e-9) == pytest.approx(1)
    assert torch.allclose(layer.weight, truth.weight, atol=1e-4)
    assert torch.allclose(layer.bias, truth.bias, atol=1e-4)
    heavy = torch.nn.Linear(6, 4)
    assert fit_linear(heavy, inputs, truth(inputs), 10) < 0.5
    assert np.isclose(heavy.weight.norm() / truth.weight.norm(), 1 / 11, rtol=0.1)
