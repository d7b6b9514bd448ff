"""The command line of both bots. It reports wrong settings before the platform's library is imported."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from minigpt4_bots.core.logs import LogLevel, set_up_logging
from minigpt4_bots.core.settings import BotSettings, read_bot_settings
from minigpt4_serve.entry_point import run_program
from minigpt4_serve.errors import InvalidRequest

__all__ = ["BotCommandLine"]


@dataclass(frozen=True)
class BotCommandLine:
    """A bot's console script."""

    extra: str
    """The extra of ``minigpt4-serve`` that installs its libraries; also the name of its example settings."""
    libraries: tuple[str, ...]
    """Top-level modules of those libraries."""
    description: str
    setup_hint: str
    """What to do if the settings have no token."""
    token: Callable[[BotSettings], SecretStr | None]
    secrets: Callable[[BotSettings], Iterable[SecretStr | None]]
    """What the logs must not show."""
    import_run: Callable[[], Callable[[BotSettings, Path | None, str], None]]
    """Imports the platform's library and returns the function that runs the bot with settings, their file and token."""

    def main(self) -> None:
        """The console script; exit codes as ``minigpt4_serve.entry_point``."""
        # Typer's own tracebacks may show variables, and one of them is the token.
        app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        settings_help = f"A YAML file such as configs/{self.extra}.yaml."

        @app.command(help=self.description)
        def start(
            settings: Annotated[Path | None, typer.Option("--settings", "-s", help=settings_help)] = None,
            log_level: Annotated[
                LogLevel, typer.Option(help="The lowest severity that is logged.", case_sensitive=False)
            ] = LogLevel.INFO,
        ) -> None:
            self._start(settings, log_level)

        run_program(f"minigpt4-{self.extra}", app, dict.fromkeys(self.libraries, self.extra))

    def _start(self, file: Path | None, log_level: LogLevel) -> None:
        settings = read_bot_settings(file)
        token = self.token(settings)
        if token is None:
            raise InvalidRequest(self.setup_hint)
        set_up_logging(log_level, [secret.get_secret_value() for secret in self.secrets(settings) if secret])
        run = self.import_run()
        run(settings, file, token.get_secret_value())
