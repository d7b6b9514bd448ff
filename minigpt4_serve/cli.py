"""The command line: ``minigpt4``. Reads arguments, prints answers; heavy imports happen inside the commands."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt4_serve import __version__
from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error
from minigpt4_serve.keys_cli import keys
from minigpt4_serve.settings import TINY_MODEL

if TYPE_CHECKING:
    from minigpt4_serve.answering import Answer, AnswerSource
    from minigpt4_serve.server.ray.local_server import LocalServer
    from minigpt4_serve.settings import ServeSettings

__all__ = ["app", "main"]

app = typer.Typer(
    name="minigpt4",
    help="Run MiniGPT-4: ask about pictures, chat about them, serve the model to others.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(keys, name="keys")

_DEFAULT_QUESTION = "What is in this picture?"
_EXTRAS = {
    "torch": "model",
    "transformers": "model",
    "ray": "serve",
    "fastapi": "serve",
    "gradio": "web",
    "uvicorn": "web",  # this process needs it for the page only
}
"""Which extra of the package brings a library."""
_DEMO_QUESTIONS = ("What is the background?", "How many objects are there?", "What are they?")

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="Ask this server instead of loading a model.", envvar="MINIGPT4_BASE_URL"
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key", help="The server's key.", envvar="MINIGPT4_API_KEY", show_envvar=True, show_default=False
    ),
]
ModelOption = Annotated[
    Path, typer.Option("--model", metavar="DIR", help="A converted model's folder.", show_default="the embedded model")
]
MaxTokensOption = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer in tokens.")]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", min=0, max=2, help="0 is the likeliest answer; higher varies more.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Same seed, same answer.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"minigpt4-serve {__version__}")
        raise typer.Exit


@app.command()
def ask(
    words: Annotated[list[str], typer.Argument(metavar="PICTURE... [QUESTION]", show_default=False)],
    server: ServerOption = None,
    api_key: KeyOption = None,
    model: ModelOption = TINY_MODEL,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
) -> None:
    """Ask one question about one or several pictures.

    Example: minigpt4 ask photo.jpg "What is in this picture?"
    """
    from minigpt4_serve.answering import user_message

    pictures, question = _split_words(words)
    message = user_message(question, pictures)
    source = _source(server, api_key, model)
    try:
        _print_answer(source.answer([message], **_options(max_tokens, temperature, seed)))
    finally:
        source.close()


@app.command()
def chat(
    picture: Annotated[list[Path], typer.Argument(metavar="PICTURE...", show_default=False)],
    server: ServerOption = None,
    api_key: KeyOption = None,
    model: ModelOption = TINY_MODEL,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
) -> None:
    """Talk about a picture. Ctrl-C stops an answer; an empty line or Ctrl-D ends the chat."""
    from minigpt4_serve.answering import Answer, user_message

    opening = user_message("", picture)
    source = _source(server, api_key, model)
    messages: list[dict[str, Any]] = []
    typer.echo("Ask about the picture. Ctrl-C stops an answer; an empty line ends the chat.", err=True)
    try:
        while question := _read_question():
            content = opening["content"][:-1] if not messages else []
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
            answer = Answer()  # should it be stopped before it begins
            try:
                answer = source.answer(messages, **_options(max_tokens, temperature, seed))
                _print_answer(answer)
            except KeyboardInterrupt:
                typer.echo(" … stopped")
            except MiniGPT4Error as error:
                # The chat goes on: the question is taken back, the person may ask again.
                typer.echo(f"minigpt4: {error.message}", err=True)
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer.text})
    finally:
        source.close()


@app.command()
def serve(
    model: Annotated[Path | None, typer.Option("--model", metavar="DIR", show_default="the embedded model")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings as YAML; options on the line win.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, show_default="8000")] = None,
    model_name: Annotated[str | None, typer.Option(help="Name that clients use.", show_default="the folder's")] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option("--keys-file", metavar="FILE", help="Who may ask; see 'minigpt4 keys'.", show_default=False),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.", show_default="info")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Watch the server that runs there; start none.")] = False,
) -> None:
    """Serve the model over an OpenAI-compatible HTTP API, on Ray Serve.

    SIGHUP reads the settings again and replaces the processes one by one; requests wait where there is only one.
    """
    from minigpt4_serve.settings import read_serve_settings

    given = {
        "model": {"path": model} if model else None,
        "host": host,
        "port": port,
        "model_name": model_name,
        "keys_file": keys_file,
        "log_level": log_level,
    }
    words = {name: value for name, value in given.items() if value is not None}
    settings = read_serve_settings(config, words)
    if status:
        from minigpt4_serve.watching import watch

        key = settings.api_key.get_secret_value() if settings.api_key else None
        watch(_base_url(settings), key)
        return
    server = _start_server(settings)
    try:
        hang_ups = _HangUps()
        typer.echo(f"Ready: {_base_url(settings)}   (Ctrl-C stops)")
        while True:
            hang_ups.wait()
            _roll_over(server, settings, config, words)
    except _StopSignal:
        pass
    finally:
        _stop_server(server)


@app.command()
def web(
    server: ServerOption = None,
    api_key: KeyOption = None,
    model: ModelOption = TINY_MODEL,
    host: Annotated[str, typer.Option(help="Address that the page listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 takes a free one.")] = 7860,
    password: Annotated[
        str | None,
        typer.Option(
            help="Asked of everybody who opens the page; needed for any --host but this machine.",
            envvar="MINIGPT4_WEB_PASSWORD",
            show_envvar=True,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Open a page to talk to a picture. Without --server it starts one itself, and stops it at the end."""
    from pydantic import SecretStr

    from minigpt4_serve.web import PageSettings, listen, serve_page

    page = PageSettings(
        server_url=server or "",
        api_key=SecretStr(api_key) if api_key else None,
        host=host,
        port=port,
        password=SecretStr(password) if password else None,
    )
    with ExitStack() as ending:
        listening = ending.enter_context(listen(page))
        if server is None:
            page = page.model_copy(update={"server_url": _start_own_server(model, api_key, ending)})
        loading = ending.enter_context(ExitStack())
        loading.enter_context(_Step("loading the page"))

        def ready(url: str) -> None:
            loading.close()
            typer.echo(f"Open {url}   (Ctrl-C stops)")

        with suppress(_StopSignal):
            serve_page(page, listening, on_ready=ready)
        typer.echo()


def _start_own_server(model: Path, api_key: str | None, ending: ExitStack) -> str:
    """The address of a server on a free port of this machine; ``ending`` stops it."""
    import socket

    from pydantic import SecretStr

    from minigpt4_serve.settings import ModelSettings, ServeSettings

    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    name = "minigpt4-tiny" if model == TINY_MODEL else None
    key = SecretStr(api_key) if api_key else None
    settings = ServeSettings(
        model=ModelSettings(path=model), port=free, model_name=name, api_key=key, log_level="warning"
    )
    ending.callback(_stop_server, _start_server(settings))
    typer.echo(f"The server: {_base_url(settings)}/v1")
    return _base_url(settings)


@app.command()
def convert(
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", show_default=False, help="The folder to make.")],
    variant: Annotated[str | None, typer.Option(help="vicuna, llama2 or v2.", show_default=False)] = None,
    llm: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The LLM's folder in Hugging Face layout.", show_default=False)
    ] = None,
    vit: Annotated[Path | None, typer.Option(metavar="FILE", help="eva_vit_g.pth", show_default=False)] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="MiniGPT-4's own .pth", show_default=False)
    ] = None,
    qformer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="blip2_pretrained_flant5xxl.pth (vicuna only)")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float16",
    keep_lora: Annotated[bool, typer.Option("--keep-lora", help="v2: keep LoRA beside the weights.")] = False,
    from_hub: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Fetch what is public of vicuna-7b, vicuna-13b, llama2-7b or v2-7b."),
    ] = None,
    parts: Annotated[Path, typer.Option(metavar="DIR", help="Where --from-hub keeps the parts.")] = Path("parts"),
    vit_heads: Annotated[int | None, typer.Option(help="Only for files of other sizes than the published.")] = None,
    vit_depth: Annotated[int | None, typer.Option(help="Likewise: blocks that are used.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Likewise: pixels.")] = None,
    qformer_heads: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Likewise.")] = None,
) -> None:
    """Turn the original's files into one folder that `serve` and transformers load.

    Example: minigpt4 convert models/minigpt4-7b --from-hub vicuna-7b
    """
    from minigpt4_serve.weights.convert import convert as convert_files
    from minigpt4_serve.weights.infer_config import Hyperparameters

    given = {"llm": llm, "vit": vit, "checkpoint": checkpoint, "qformer": qformer}
    paths = {role: path for role, path in given.items() if path is not None}
    if from_hub is not None:
        if variant is not None:
            raise InvalidRequest("--from-hub NAME tells the variant; leave --variant out.")
        variant, paths = _fetch_parts(from_hub, parts, paths)
    absent = [f"--{role}" for role in ("llm", "vit", "checkpoint") if role not in paths]
    if variant is None:
        absent.insert(0, "--variant")
    if absent:
        raise InvalidRequest(f"Give {', '.join(absent)}, or --from-hub NAME.")
    conversion = convert_files(
        variant=variant,  # type: ignore[arg-type]  # checked there
        **paths,  # type: ignore[arg-type]
        out=out,
        dtype=dtype,
        keep_lora=keep_lora,
        hyperparameters=Hyperparameters(
            vit_heads=vit_heads,
            vit_depth=vit_depth,
            image_size=image_size,
            qformer_heads=qformer_heads,
            lora_alpha=lora_alpha,
        ),
        on_progress=lambda progress: _show_bytes(f"{progress.step} {progress.item}", progress.done, progress.total),
    )
    for note in conversion.notes:
        typer.echo(f"Note: {note}", err=True)
    typer.echo(f"{out} is ready. Serve it: minigpt4 serve --model {out}")


def _fetch_parts(name: str, into: Path, given: dict[str, Path]) -> tuple[str, dict[str, Path]]:
    """(variant, role → path); ends the command with an explanation if a part can't be fetched."""
    from minigpt4_serve.weights.hub import fetch

    fetched = fetch(name, into, given=given, on_progress=_show_bytes)
    if fetched.missing:
        reasons = "\n".join(f"  --{role}: {reason}" for role, reason in fetched.missing.items())
        raise InvalidRequest(f"What is public of {name} lies in {into}. Still missing:\n{reasons}")
    return fetched.variant, fetched.paths


def _show_bytes(item: str, done: int, total: int) -> None:
    """One line that counts up on a terminal, one line per hundred percent elsewhere."""
    finished = done >= total
    if sys.stderr.isatty():
        typer.echo(f"\r• {done / max(total, 1):4.0%}  {item[-70:]:<70}", err=True, nl=finished)
    elif finished:
        typer.echo(f"• {item}", err=True)


@app.command()
def doctor(
    model: ModelOption = TINY_MODEL,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
) -> None:
    """Check this machine and a model: versions, devices, memory, digests, and a question with a known answer."""
    from minigpt4_serve.doctor import examine, memory_table
    from minigpt4_serve.settings import ModelSettings

    problems = 0
    for finding in examine(ModelSettings(path=model, device=device)):
        mark = {"ok": "✓", "note": "·", "problem": "✗"}[finding.state]
        problems += finding.state == "problem"
        typer.echo(f"{mark} {finding.topic:<18} {finding.text}")
    typer.echo("\nWhat the published models take:")
    for row in memory_table():
        typer.echo("  {:<11} {:<9} {:>9}  {:>19}  {}".format(*row))
    if problems:
        raise SystemExit(1)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Start the real server with the embedded model and ask it about a picture."""
    from minigpt4_serve.answering import RemoteModel, user_message
    from minigpt4_serve.settings import ServeSettings

    picture = TINY_MODEL / "example.png"
    settings = ServeSettings(port=port, model_name="minigpt4-tiny", log_level="warning")
    server = _start_server(settings)
    source = RemoteModel(_base_url(settings))
    try:
        typer.echo(f"\nThe picture: {picture}\n")
        messages: list[dict[str, Any]] = []
        for question in _DEMO_QUESTIONS:
            messages.append(user_message(question, [] if messages else [picture]))
            typer.echo(f"> {question}")
            answer = source.answer(messages)
            _print_answer(answer)
            typer.echo(f"  {_timing(answer)}\n")
            messages.append({"role": "assistant", "content": answer.text})
        typer.echo(_what_next(picture, _base_url(settings), keep))
        if keep:
            with suppress(_StopSignal):
                _HangUps().wait()
    finally:
        source.close()
        _stop_server(server)


def _what_next(picture: Path, url: str, keep: bool) -> str:
    command = _command()
    where = f" --server {url}" if keep else ""
    up = f"The server is up at {url}/v1 (Ctrl-C stops it).\n" if keep else ""
    return (
        f"{up}What to try next:\n"
        f'  {command} ask {_short(picture)} "What color is the star?"{where}\n'
        f"  {command} chat {_short(picture)}{where}\n"
        f"  {command} web{where}    a page in the browser to talk to pictures\n"
        f"  {command} serve  then point any OpenAI client at http://127.0.0.1:8000/v1\n"
        f"  {command} --help"
    )


def _command() -> str:
    """How to call us again from here: an environment in this folder need not be activated."""
    script = Path(sys.executable).with_name("minigpt4")
    return _short(script) if script.is_relative_to(Path.cwd()) else "minigpt4"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _base_url(settings: "ServeSettings") -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def _split_words(words: Sequence[str]) -> tuple[list[Path], str]:
    """Pictures first, the question last; a last word that is a file, or is called like a picture, is one, too."""
    from minigpt4_serve.images import IMAGE_SUFFIXES

    last = words[-1]
    if len(words) == 1 or Path(last).is_file() or last.lower().endswith(IMAGE_SUFFIXES):
        return [Path(word) for word in words], _DEFAULT_QUESTION
    return [Path(word) for word in words[:-1]], last.strip() or _DEFAULT_QUESTION


def _options(max_tokens: int | None, temperature: float | None, seed: int | None) -> dict[str, Any]:
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    return {name: value for name, value in given.items() if value is not None}


def _source(server: str | None, api_key: str | None, model: Path) -> "AnswerSource":
    from minigpt4_serve.answering import LocalModel, RemoteModel
    from minigpt4_serve.settings import ModelSettings, ServeSettings

    if server:
        return RemoteModel(server, api_key=api_key, model=os.environ.get("MINIGPT4_MODEL"))
    with _Step("loading the model"):
        return LocalModel(ServeSettings(model=ModelSettings(path=model)))


def _print_answer(answer: "Answer") -> None:
    for piece in answer:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if answer.dropped_messages:
        typer.echo(
            f"(The chat is long: the words of its oldest {answer.dropped_messages} messages were left out.)", err=True
        )


def _timing(answer: "Answer") -> str:
    rate = answer.completion_tokens / answer.seconds if answer.seconds else 0
    return (
        f"first words after {answer.ttft * 1000:.0f} ms, {answer.completion_tokens} tokens in "
        f"{answer.seconds * 1000:.0f} ms ({rate:.0f} tokens/s); {answer.cached_tokens} of {answer.prompt_tokens} "
        "prompt tokens were cached"
    )


def _read_question() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return ""


def _start_server(settings: "ServeSettings") -> "LocalServer":
    """Return when the server answers. From here on SIGTERM and Ctrl-C raise ``_StopSignal``."""
    _handle_stop_signals(_raise_stop_signal)
    with ExitStack() as step:

        def begin(what: str) -> None:
            step.pop_all().close()
            step.enter_context(_Step(what))

        begin("importing Ray")
        from minigpt4_serve.server.ray.local_server import LocalServer

        server = LocalServer(settings)
        server.start(on_progress=begin)
    return server


def _stop_server(server: "LocalServer") -> None:
    """Finish the answers in progress, then stop; a second signal ends all processes at once."""
    _handle_stop_signals(_kill_all)
    typer.echo("Stopping …")
    server.stop()


class _StopSignal(SystemExit):
    """SIGTERM or Ctrl-C. Where nothing catches it, it is the exit code that a shell expects of a stopped command."""


def _handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell lets what it starts in the background ignore Ctrl-C
            signal.signal(number, handler)


def _raise_stop_signal(number: int, _: FrameType | None) -> None:
    _handle_stop_signals(_kill_all)
    raise _StopSignal(_EXIT_BY_SIGNAL + number)


def _kill_all(number: int, _: FrameType | None) -> None:
    from minigpt4_serve.process_tree import kill_descendants

    kill_descendants()
    os._exit(_EXIT_BY_SIGNAL + number)  # Ray's exit handlers would wait for the processes that are gone


class _Step:
    """A long step that says what is going on, and how long it took."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        # Where stderr isn't a terminal it is a log: a log line may follow while the step takes.
        typer.echo(f"• {self._what} …", err=True, nl=not sys.stderr.isatty())

    def __exit__(self, kind: object, *_: object) -> None:
        typer.echo(" failed" if kind else f" {time.perf_counter() - self._started:.1f} s", err=True)


_EXIT_BY_SIGNAL = 128  # shells and service managers add a signal's number to it
_HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none


class _HangUps:
    """SIGHUPs, kept until they are waited for: one that comes during a roll-over isn't lost."""

    def __init__(self) -> None:
        self._received = 0
        if _HANG_UP is not None:
            signal.signal(_HANG_UP, self._receive)

    def _receive(self, _: int, __: FrameType | None) -> None:
        self._received += 1

    def wait(self) -> None:
        """Return after the next one."""
        while not self._received:
            time.sleep(0.2)
        self._received -= 1


def _roll_over(server: "LocalServer", running: "ServeSettings", config: Path | None, words: dict[str, Any]) -> None:
    """New settings for a running server; what can be seen to be wrong before a process is replaced changes nothing."""
    from minigpt4_serve.server.ray.local_server import check_settings
    from minigpt4_serve.settings import read_serve_settings

    try:
        settings = read_serve_settings(config, words)
        for name in ("host", "port", "metrics_port"):
            if getattr(settings, name) != getattr(running, name):
                raise InvalidRequest(f"A new '{name}' needs a new start.", param=name)
        check_settings(settings)
    except MiniGPT4Error as error:
        typer.echo(f"minigpt4: {error.message} The server goes on as it was.", err=True)
        return
    try:
        with _Step("replacing the processes, one by one"):
            server.deploy(settings)
    except MiniGPT4Error as error:
        typer.echo(f"minigpt4: {error.message} Correct the settings and send SIGHUP again.", err=True)
    else:
        typer.echo("Ready again: the settings were read anew.")


def main() -> None:
    """Entry point: errors of ours become one line and exit code 1, Ctrl-C becomes 130; nothing shows a traceback."""
    try:
        app()
    except MiniGPT4Error as error:
        typer.echo(f"minigpt4: {error}", err=True)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        typer.echo(f"minigpt4: This needs the extra '{extra}': pip install \"minigpt4-serve[{extra}]\"", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read our output left; a second attempt to flush at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
