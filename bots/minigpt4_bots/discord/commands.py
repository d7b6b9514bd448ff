"""The bot's slash commands and message menus: names, descriptions and options in all languages, and their upload.

Knows how they are declared, not what they do: that is ``Deeds``, which the bot implements.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Protocol

import discord
from discord import app_commands
from discord.app_commands import locale_str

from minigpt4_bots.core.storage import Storage
from minigpt4_bots.core.texts import Texts, choose_language

__all__ = ["COMMANDS", "Deeds", "build_tree", "synchronise"]

_log = logging.getLogger(__name__)

COMMANDS = ("ask", "reset", "stop", "help", "privacy", "forget")
"""Slash commands in the order of the help."""
_FACT = "discord.commands"
_EVERYWHERE = app_commands.AppCommandContext(guild=True, dm_channel=True, private_channel=True)
_FOR_ALL = app_commands.AppInstallationType(guild=True, user=True)
_LONGEST_QUESTION = 1500


class Deeds(Protocol):
    """What the commands do."""

    async def on_ask(
        self, interaction: discord.Interaction, question: str, pictures: Sequence[discord.Attachment]
    ) -> None:
        """``/ask``."""

    async def on_describe(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """The first menu entry."""

    async def on_ask_about(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """The second menu entry."""

    async def on_short_command(self, interaction: discord.Interaction, name: str) -> None:
        """All other commands, which have no options."""


class _Translator(app_commands.Translator):
    """Names and descriptions from the catalogue of texts."""

    async def translate(
        self, string: locale_str, locale: discord.Locale, context: app_commands.TranslationContextTypes
    ) -> str | None:
        language = choose_language("auto", locale.value)
        # Commands are called the same everywhere; what the catalogue doesn't have is shown in the default language.
        if "text" not in string.extras or not locale.value.startswith(language):
            return None
        return Texts(language)(string.extras["text"])


def build_tree(client: discord.Client, deeds: Deeds, language: str) -> app_commands.CommandTree[discord.Client]:
    """All commands, usable in servers, private chats and wherever people bring the app along.

    ``language``: of the names for people whose own language isn't in the catalogue.
    """
    texts = Texts(choose_language(language, None))
    tree = app_commands.CommandTree(client, allowed_contexts=_EVERYWHERE, allowed_installs=_FOR_ALL)

    def words(name: str) -> locale_str:
        return locale_str(texts(name), text=name)

    @tree.command(name="ask", description=words("command.ask"))
    @app_commands.describe(
        question=words("option.question"),
        picture=words("option.picture"),
        picture_2=words("option.picture"),
        picture_3=words("option.picture"),
        picture_4=words("option.picture"),
    )
    async def ask(
        interaction: discord.Interaction,
        picture: discord.Attachment | None = None,
        question: app_commands.Range[str, 1, _LONGEST_QUESTION] | None = None,
        picture_2: discord.Attachment | None = None,
        picture_3: discord.Attachment | None = None,
        picture_4: discord.Attachment | None = None,
    ) -> None:
        pictures = [one for one in (picture, picture_2, picture_3, picture_4) if one is not None]
        await deeds.on_ask(interaction, question or "", pictures)

    def add_short(name: str) -> None:
        async def run(interaction: discord.Interaction) -> None:
            await deeds.on_short_command(interaction, name)

        tree.add_command(app_commands.Command(name=name, description=words(f"command.{name}"), callback=run))

    for name in COMMANDS[1:]:
        add_short(name)

    @tree.context_menu(name=words("command.describe"))
    async def describe(interaction: discord.Interaction, message: discord.Message) -> None:
        await deeds.on_describe(interaction, message)

    @tree.context_menu(name=words("command.ask_about"))
    async def ask_about(interaction: discord.Interaction, message: discord.Message) -> None:
        await deeds.on_ask_about(interaction, message)

    return tree


async def synchronise(tree: app_commands.CommandTree[discord.Client], storage: Storage) -> None:
    """Upload the commands if they are others than the last time. Discord allows that 200 times a day only."""
    translator = _Translator()
    await tree.set_translator(translator)
    commands = tree.get_commands() + tree.get_commands(type=discord.AppCommandType.message)
    payload = [await command.get_translated_payload(tree, translator) for command in dict.fromkeys(commands)]
    about = json.dumps([tree.client.application_id, payload], sort_keys=True, default=str)
    digest = hashlib.sha256(about.encode()).hexdigest()
    if storage.fact(_FACT) == digest:
        return
    try:
        await tree.sync()
    except (discord.HTTPException, app_commands.CommandSyncFailure) as error:
        _log.error("Discord refused the commands (%s); older ones stay. The bot answers mentions all the same.", error)
        return
    storage.remember_fact(_FACT, digest)
    _log.info("the commands were uploaded")
