"""The bots' commands in one table: name, who may use it, handler. Both platforms run them by ``run_command``.

To add a command, add a row here and its description ``command.…`` to each file of texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from minigpt4_bots.core.access import DenialReason, Requester
from minigpt4_bots.core.answer_service import AnswerService
from minigpt4_bots.core.texts import Texts

__all__ = ["COMMANDS", "COMMAND_NAMES", "Access", "Command", "CommandContext", "find_command", "run_command"]


class Access(Enum):
    """Who may use a command."""

    EVERYONE = auto()
    """Also people whom the access lists exclude."""
    ADMITTED = auto()
    """People whom the access lists admit."""


@dataclass(frozen=True)
class CommandContext:
    """The use of a command by one person, and how the platform shows commands."""

    service: AnswerService
    requester: Requester
    mention: str
    """How people address the bot."""
    format_command: Callable[[str], str]
    """A command's name as people see it, such as ``/ask``."""
    extra_help: Sequence[str] = ()
    """Paragraphs below the help that only this platform has."""

    @property
    def texts(self) -> Texts:
        """The texts in the requester's language."""
        return self.service.texts(self.requester)


def _reset(context: CommandContext) -> str:
    context.service.reset(context.requester)
    return context.texts("reset.done")


def _stop(context: CommandContext) -> str:
    return context.texts(context.service.stop(context.requester))


def _forget(context: CommandContext) -> str:
    context.service.forget(context.requester)
    return context.texts("forget.done")


def _privacy(context: CommandContext) -> str:
    texts = context.texts
    lifetime = texts.describe_wait(context.service.settings.pictures.lifetime_s)
    return texts("privacy", lifetime=lifetime, forget=context.format_command("forget"))


def _help(context: CommandContext) -> str:
    texts = context.texts
    limits = context.service.limits
    images = context.service.settings.pictures
    lines = [
        texts("help.intro"),
        "",
        texts("help.send"),
        texts("help.group", mention=context.mention),
        texts("help.reply"),
        texts("help.files", count=images.max_count, limit=texts.megabytes(images.max_bytes)),
    ]
    if limits.user_per_minute is not None:
        lines.append(texts("help.limits_minute", n=limits.user_per_minute))
    if limits.user_per_day is not None:
        lines.append(texts("help.limits_day", n=limits.user_per_day))
    lines += ["", texts("help.commands")]
    lines += [f"{context.format_command(command.name)} – {texts(command.description)}" for command in COMMANDS]
    return "\n\n".join(["\n".join(lines), *context.extra_help])


@dataclass(frozen=True)
class Command:
    """One command. ``handler`` returns the reply."""

    name: str
    access: Access
    handler: Callable[[CommandContext], str] | None
    """None for ``ask``, which each platform reads as a question."""
    aliases: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """The name of the text that describes it."""
        return f"command.{self.name}"


COMMANDS = (
    Command("ask", Access.ADMITTED, None),
    Command("reset", Access.ADMITTED, _reset),
    Command("stop", Access.EVERYONE, _stop),
    Command("help", Access.ADMITTED, _help, aliases=("start",)),
    Command("privacy", Access.EVERYONE, _privacy),
    Command("forget", Access.EVERYONE, _forget),
)
"""In the order of the help."""
COMMAND_NAMES = tuple(command.name for command in COMMANDS)


def find_command(name: str) -> Command | None:
    """The command of that name or alias."""
    return next((command for command in COMMANDS if name == command.name or name in command.aliases), None)


def run_command(command: Command | None, context: CommandContext) -> str:
    """Run a command and return the reply. An unknown command gets a hint on how to ask."""
    is_open = command is not None and command.access is Access.EVERYONE
    if not is_open and not context.service.is_allowed(context.requester):
        return context.texts(DenialReason.NO_ACCESS)
    if command is None or command.handler is None:
        return context.texts("hint.no_picture")
    return command.handler(context)
