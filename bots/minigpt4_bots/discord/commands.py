"""Declares the bot's slash commands and message menus in all languages, and uploads them.

What they do is up to ``CommandHandlers``.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Protocol

import discord
from discord import app_commands
from discord.app_commands import locale_str

from minigpt4_bots.core.commands import COMMANDS, Command
from minigpt4_bots.core.storage import Storage
from minigpt4_bots.core.texts import Texts, choose_language

__all__ = ["LONGEST_QUESTION", "CommandHandlers", "build_tree", "upload_commands"]

_log = logging.getLogger(__name__)

LONGEST_QUESTION = 1500
"""Characters of a question in a command or form."""
_FACT = "discord.commands"
_EVERYWHERE = app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=True)
_FOR_ALL = app_commands.AppInstallationType(guild=True, user=True)


class CommandHandlers(Protocol):
    """Handles the commands and menus."""

    async def on_ask(
        self, interaction: discord.Interaction, question: str, images: Sequence[discord.Attachment]
    ) -> None:
        """``/ask``."""

    async def on_describe(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """The menu "Describe picture"."""

    async def on_ask_about(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """The menu "Ask about picture…"."""

    async def on_command(self, interaction: discord.Interaction, command: Command) -> None:
        """A command without options."""


class _Translator(app_commands.Translator):
    """Translates descriptions and menu names by the catalog of texts."""

    async def translate(
        self, string: locale_str, locale: discord.Locale, context: app_commands.TranslationContextTypes
    ) -> str | None:
        language = choose_language("auto", locale.value)
        # Command names aren't translated. Locales missing in the catalog show the default language.
        if "text" not in string.extras or not locale.value.startswith(language):
            return None
        return Texts(language)(string.extras["text"])


def build_tree(
    client: discord.Client, handlers: CommandHandlers, language: str
) -> app_commands.CommandTree[discord.Client]:
    """All commands, usable in servers, private chats and wherever people install the app for themselves.

    ``language`` is the setting; it applies to people whose own language isn't in the catalog.
    """
    texts = Texts(choose_language(language, None))
    tree = app_commands.CommandTree(client, allowed_contexts=_EVERYWHERE, allowed_installs=_FOR_ALL)

    def localized(name: str) -> locale_str:
        return locale_str(texts(name), text=name)

    @tree.command(name="ask", description=localized("command.ask"))
    @app_commands.describe(
        question=localized("option.question"),
        picture=localized("option.picture"),
        picture_2=localized("option.picture"),
        picture_3=localized("option.picture"),
        picture_4=localized("option.picture"),
    )
    async def ask(
        interaction: discord.Interaction,
        picture: discord.Attachment | None = None,
        question: app_commands.Range[str, 1, LONGEST_QUESTION] | None = None,
        picture_2: discord.Attachment | None = None,
        picture_3: discord.Attachment | None = None,
        picture_4: discord.Attachment | None = None,
    ) -> None:
        images = [one for one in (picture, picture_2, picture_3, picture_4) if one is not None]
        await handlers.on_ask(interaction, question or "", images)

    def add_command(command: Command) -> None:
        async def run(interaction: discord.Interaction) -> None:
            await handlers.on_command(interaction, command)

        description = localized(command.description)
        tree.add_command(app_commands.Command(name=command.name, description=description, callback=run))

    for command in COMMANDS:
        if command.handler is not None:
            add_command(command)

    @tree.context_menu(name=localized("command.describe"))
    async def describe(interaction: discord.Interaction, message: discord.Message) -> None:
        await handlers.on_describe(interaction, message)

    @tree.context_menu(name=localized("command.ask_about"))
    async def ask_about(interaction: discord.Interaction, message: discord.Message) -> None:
        await handlers.on_ask_about(interaction, message)

    return tree


async def upload_commands(tree: app_commands.CommandTree[discord.Client], storage: Storage) -> None:
    """Upload the commands if they differ from the last upload. Discord allows 200 uploads a day."""
    translator = _Translator()
    await tree.set_translator(translator)
    commands = tree.get_commands() + tree.get_commands(type=discord.AppCommandType.message)
    payload = [await command.get_translated_payload(tree, translator) for command in dict.fromkeys(commands)]
    content = json.dumps([tree.client.application_id, payload], sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()
    if await storage.fact(_FACT) == digest:
        return
    try:
        await tree.sync()
    except (discord.HTTPException, app_commands.CommandSyncFailure) as error:
        _log.error("Discord refused the commands (%s); the old ones stay. The bot still answers mentions.", error)
        return
    storage.store_fact(_FACT, digest)
    _log.info("uploaded the commands")
