"""Commands, menus, buttons and the window for a question: what Discord calls interactions, as questions to the core.

They work where the bot isn't a member, too: everything is answered through the interaction itself.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import discord

from minigpt4_bots.core.access import Asker
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.question import Attachment, Question
from minigpt4_bots.core.texts import Texts
from minigpt4_bots.discord.commands import COMMANDS
from minigpt4_bots.discord.messages import asker_of, attachment_of, attachments_of, parent_of, words_of
from minigpt4_bots.discord.targets import InteractionOutlet, Where, read_button

if TYPE_CHECKING:
    from minigpt4_bots.discord.bot import DiscordBot

__all__ = ["Interactions"]

_log = logging.getLogger(__name__)

_THINKING_AFTER_S = 1.5
"""Discord gives an interaction up after 3 s."""
_WINDOW_OPEN_S = 900.0
_LONGEST_QUESTION = 1500
_WINDOW = "minigpt4:window:"


class _QuestionWindow(discord.ui.Modal):
    """Asks for the question about a picture that was chosen by a menu."""

    def __init__(
        self, interactions: "Interactions", attachments: tuple[Attachment, ...], texts: Texts, name: str
    ) -> None:
        super().__init__(title=texts("modal.title"), timeout=_WINDOW_OPEN_S, custom_id=name)
        self._interactions = interactions
        self._attachments = attachments
        self._question: discord.ui.TextInput[_QuestionWindow] = discord.ui.TextInput(
            label=texts("modal.question"), style=discord.TextStyle.paragraph, max_length=_LONGEST_QUESTION
        )
        self.add_item(self._question)

    async def on_submit(self, interaction: discord.Interaction) -> None:
        """The question is there."""
        await self._interactions.answer(interaction, self._question.value.strip(), self._attachments)


class Interactions:
    """What the bot's commands and buttons do."""

    def __init__(self, bot: "DiscordBot") -> None:
        self._bot = bot
        self._life = secrets.token_hex(4)
        """Windows that were opened in an earlier life can't be answered any more."""

    async def on_ask(
        self, interaction: discord.Interaction, question: str, pictures: Sequence[discord.Attachment]
    ) -> None:
        """``/ask``: without pictures it goes on from the asker's latest conversation here."""
        attachments = tuple(attachment_of(picture, self._bot.files) for picture in pictures)
        await self.answer(interaction, words_of(question, self._bot.me), attachments)

    async def on_describe(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """The menu's "Describe picture": the default question."""
        if (attachments := await self._pictures(interaction, message)) is not None:
            await self.answer(interaction, "", attachments)

    async def on_ask_about(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """The menu's "Ask about picture…": opens a window for the question."""
        if (attachments := await self._pictures(interaction, message)) is not None:
            name = f"{_WINDOW}{self._life}:{interaction.id}"
            texts = self._bot.answering.texts(self._asker(interaction))
            await interaction.response.send_modal(_QuestionWindow(self, attachments, texts, name))

    async def on_short_command(self, interaction: discord.Interaction, name: str) -> None:
        """The commands that are answered at once, to the asker alone."""
        answering, asker = self._bot.answering, self._asker(interaction)
        texts = answering.texts(asker)
        # What is known of them, and its end, is everybody's right.
        if name not in ("privacy", "forget") and not answering.is_allowed(asker):
            await self._whisper(interaction, texts("refused.access"))
            return
        said = {
            "reset": lambda: answering.reset(asker),
            "stop": lambda: answering.stop(asker),
            "forget": lambda: answering.forget(asker),
            "privacy": lambda: answering.privacy(asker, forget="`/forget`"),
            "help": lambda: self._help(asker),
        }[name]()
        await self._whisper(interaction, said)

    async def on_event(self, interaction: discord.Interaction) -> None:
        """Buttons, and windows that nobody waits for any more."""
        custom_id = interaction.custom_id or ""
        if interaction.type is discord.InteractionType.modal_submit:
            if custom_id.startswith(_WINDOW) and not custom_id.startswith(f"{_WINDOW}{self._life}:"):
                await self._whisper(interaction, self._bot.answering.texts(self._asker(interaction))("again.forgotten"))
        elif interaction.type is discord.InteractionType.component and (button := read_button(custom_id)) is not None:
            name, owner = button
            await (self._stop(interaction) if name == "stop" else self._again(interaction, owner))

    async def answer(self, interaction: discord.Interaction, text: str, attachments: tuple[Attachment, ...]) -> None:
        """Ask the core and answer the interaction."""
        asker = self._asker(interaction)
        outlet = self._outlet(interaction, asker)
        question = Question(
            asker=asker,
            key=MessageKey(asker.channel, f"interaction {interaction.id}"),
            text=text,
            attachments=attachments,
            fetch=self._bot.fetch,
            place=Where(int(asker.channel), token=interaction.token).to_json(),
        )
        waiting = asyncio.create_task(outlet.keep_waiting(_THINKING_AFTER_S))
        try:
            await self._bot.answering.ask(question, outlet)
        finally:
            waiting.cancel()
        if not outlet.is_acknowledged:
            # Of many refusals at once the core says one only; each interaction wants an answer.
            await self._whisper(interaction, self._bot.answering.texts(asker)("refused.busy"))

    async def _stop(self, interaction: discord.Interaction) -> None:
        answering, asker = self._bot.answering, self._asker(interaction)
        texts = answering.texts(asker)
        assert interaction.message is not None
        said = await answering.stop_shown(asker, MessageKey(asker.channel, str(interaction.message.id)))
        if said == texts("stopped.done"):
            await interaction.response.defer()  # the answer itself says that it was stopped
        elif said == texts("stopped.nothing"):
            # Left behind: nobody writes here any more, so the button goes.
            await interaction.response.edit_message(view=None)
        else:
            await self._whisper(interaction, said)

    async def _again(self, interaction: discord.Interaction, owner: int) -> None:
        answering, asker = self._bot.answering, self._asker(interaction)
        assert interaction.message is not None
        key = MessageKey(asker.channel, str(interaction.message.id))
        if str(owner) != asker.user and not answering.is_admin(asker):
            await self._whisper(interaction, answering.texts(asker)("stopped.other"))
            return
        await interaction.response.defer()
        outlet = self._outlet(interaction, asker, original=str(interaction.message.id))
        place = Where(interaction.message.channel.id, token=interaction.token).to_json()
        said = await answering.regenerate(asker, key, outlet, place=place)
        if said == answering.texts(asker)("again.forgotten"):
            said = await self._again_from_platform(interaction.message, asker, outlet)
        if said is not None:
            await interaction.followup.send(said, ephemeral=True)

    async def _again_from_platform(
        self, answer: discord.Message, asker: Asker, outlet: InteractionOutlet
    ) -> str | None:
        """The conversation was forgotten, but the question may still stand in the channel."""
        asked = parent_of(answer)
        message = await self._bot.fetch_message(asked) if asked is not None else None
        question = self._bot.question(message, asker) if message is not None else None
        if message is None or question is None or str(message.author.id) != asker.user:
            return self._bot.answering.texts(asker)("again.forgotten")
        place = Where(message.channel.id, question=message.id).to_json()
        await self._bot.answering.ask(replace(question, place=place), outlet)
        return None

    async def _pictures(
        self, interaction: discord.Interaction, message: discord.Message
    ) -> tuple[Attachment, ...] | None:
        """What the message shows; None, and the asker is told, if that is nothing."""
        attachments = attachments_of(message, self._bot.files)
        if not attachments:
            texts = self._bot.answering.texts(self._asker(interaction))
            await self._whisper(interaction, texts("hint.nothing_usable"))
            return None
        return attachments

    def _help(self, asker: Asker) -> str:
        texts = self._bot.answering.texts(asker)
        commands = [(f"`/{name}`", texts(f"command.{name}")) for name in COMMANDS]
        menus = texts("help.menus", describe=texts("command.describe"), ask=texts("command.ask_about"))
        mention = f"<@{self._bot.me}>"
        return f"{self._bot.answering.help(asker, mention=mention, commands=commands)}\n\n{menus}"

    def _asker(self, interaction: discord.Interaction) -> Asker:
        # A place of a kind that the library doesn't know is told apart by its server, or by the person.
        channel = interaction.channel or discord.Object(interaction.guild_id or interaction.user.id)
        return asker_of(
            interaction.user,
            channel,
            guild_id=interaction.guild_id,
            language=interaction.locale.value,
        )

    def _outlet(
        self, interaction: discord.Interaction, asker: Asker, *, original: str | None = None
    ) -> InteractionOutlet:
        return InteractionOutlet(
            interaction,
            asker=int(asker.user),
            texts=self._bot.answering.texts(asker),
            channel=self._bot.get_partial_messageable(int(asker.channel)),
            original=original,
        )

    async def _whisper(self, interaction: discord.Interaction, text: str) -> None:
        await interaction.response.send_message(text, ephemeral=True)
