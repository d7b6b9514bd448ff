"""The command table, with the core and no platform."""

import asyncio
from pathlib import Path

import pytest
from drawing import draw, encode
from fakes.openai_replies import Gate, Reply
from fakes.openai_server import bots_server
from memory_chat import MemoryTarget
from minigpt4_bots.core.access import Requester
from minigpt4_bots.core.answer_service import AnswerService
from minigpt4_bots.core.commands import COMMANDS, Access, Command, CommandContext, find_command, run_command
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.question import Attachment, Question
from minigpt4_bots.core.send_queue import Rate
from minigpt4_bots.core.settings import read_bot_settings
from minigpt4_bots.core.texts import Texts, languages
from waiting import wait_until

ANNA = Requester("test", "1", "chat")


def service_in(folder: Path, access: str, base_url: str = "http://127.0.0.1:9/v1") -> AnswerService:
    file = folder / "settings.yaml"
    file.write_text(f"access: {access}\n")
    environment = {"MINIGPT4_BOTS_DATABASE": str(folder / "db"), "MINIGPT4_BASE_URL": base_url}
    settings = read_bot_settings(file, environment)
    return AnswerService.create(settings, "test", file=file, overall=[], rates_for=lambda _: [Rate(1, 0.005)])


def run(service: AnswerService, name: str) -> str:
    context = CommandContext(
        service, ANNA, mention="@bot", format_command=lambda name: f"/{name}", extra_help=("More.",)
    )
    return run_command(find_command(name), context)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
async def test_access_is_checked_by_the_table(tmp_path: Path, command: Command) -> None:
    denied = service_in(tmp_path, "{deny: {users: [1]}}")
    is_refused = run(denied, command.name) == Texts()("refused.access")
    assert is_refused is (command.access is Access.ADMITTED)
    await denied.close()


def test_stop_privacy_and_forget_are_open_to_everyone() -> None:
    assert {command.name for command in COMMANDS if command.access is Access.EVERYONE} == {"stop", "privacy", "forget"}


async def test_people_without_access_stop_their_own_answer(tmp_path: Path) -> None:
    async def load(_: int) -> bytes:
        return encode(draw("red"))

    with bots_server() as vision:
        vision.on("Slow", Reply(["Part", Gate()]))
        service = service_in(tmp_path, "{}", vision.url)
        target = MemoryTarget()
        question = Question(ANNA, MessageKey("chat", "q1"), "Slow", (Attachment(load),))
        asking = asyncio.create_task(service.ask(question, target))
        await wait_until(lambda: target.texts == ["Part"])
        (tmp_path / "settings.yaml").write_text("access: {deny: {users: [1]}}\n")
        assert not service.is_allowed(ANNA)
        assert run(service, "stop") == Texts()("stopped.done")
        await asking
        assert target.texts == ["Part\n\n⏹ Stopped."]
        await service.close()


@pytest.mark.parametrize("language", languages())
def test_commands_are_described_in_all_languages(language: str) -> None:
    for command in COMMANDS:
        assert Texts(language)(command.description)


async def test_help_lists_all_commands(tmp_path: Path) -> None:
    service = service_in(tmp_path, "{}")
    text = run(service, "start")
    assert text == run(service, "help")
    for command in COMMANDS:
        assert f"/{command.name} – " in text
    assert text.endswith("\n\nMore.")
    await service.close()


async def test_unknown_commands_get_a_hint(tmp_path: Path) -> None:
    service = service_in(tmp_path, "{}")
    assert run(service, "whatever") == Texts()("hint.no_picture")
    await service.close()
