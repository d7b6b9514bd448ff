"""Handles Discord's interactions: commands, menus, buttons and the form for a question.

They also work where the bot isn't a member, so each reply goes through the interaction itself.
"""

import asyncio
import secrets
from collections.abc import Sequence

import discord

from minigpt4_bots.core.access import DenialReason, Requester
from minigpt4_bots.core.answer_service import AnswerService, StopOutcome
from minigpt4_bots.core.commands import Command, CommandContext, run_command
from minigpt4_bots.core.conversation import MessageKey
from minigpt4_bots.core.question import Attachment, Question
from minigpt4_bots.core.streaming import Buttons
from minigpt4_bots.core.texts import Texts
from minigpt4_bots.discord.commands import LONGEST_QUESTION
from minigpt4_bots.discord.messages import MessageReader, replied_to_key, requester_from
from minigpt4_bots.discord.targets import InteractionTarget, MessageLocation, read_button

__all__ = ["InteractionHandlers"]

_THINKING_AFTER_S = 1.5
"""Discord drops an interaction after 3 s."""
_FORM_TIMEOUT_S = 900.0
_FORM_PREFIX = "minigpt4:window:"


class _QuestionForm(discord.ui.Modal):
    """Asks for the question about an image that was chosen by a menu."""

    def __init__(
        self, handlers: "InteractionHandlers", attachments: tuple[Attachment, ...], texts: Texts, custom_id: str
    ) -> None:
        super().__init__(title=texts("modal.title"), timeout=_FORM_TIMEOUT_S, custom_id=custom_id)
        self._handlers = handlers
        self._attachments = attachments
        self._question: discord.ui.TextInput[_QuestionForm] = discord.ui.TextInput(
            label=texts("modal.question"), style=discord.TextStyle.paragraph, max_length=LONGEST_QUESTION
        )
        self.add_item(self._question)

    async def on_submit(self, interaction: discord.Interaction) -> None:
        """Answer the submitted question."""
        await self._handlers.answer(interaction, self._question.value.strip(), self._attachments)


class InteractionHandlers:
    """Handles commands and menus (``CommandHandlers``), buttons and forms."""

    def __init__(self, service: AnswerService, reader: MessageReader) -> None:
        self._service = service
        self._reader = reader
        self._process_id = secrets.token_hex(4)
        """Part of a form's id: forms opened by an earlier process can't be answered."""

    async def on_ask(
        self, interaction: discord.Interaction, question: str, images: Sequence[discord.Attachment]
    ) -> None:
        """``/ask``: without images it continues the requester's latest conversation here."""
        attachments = tuple(self._reader.attachment(image) for image in images)
        await self.answer(interaction, self._reader.clean_text(question), attachments)

    async def on_describe(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """Ask the default question about the message's images."""
        if (attachments := await self._find_images(interaction, message)) is not None:
            await self.answer(interaction, "", attachments)

    async def on_ask_about(self, interaction: discord.Interaction, message: discord.Message) -> None:
        """Open a form for a question about the message's images."""
        if (attachments := await self._find_images(interaction, message)) is not None:
            custom_id = f"{_FORM_PREFIX}{self._process_id}:{interaction.id}"
            texts = self._service.texts(self._requester(interaction))
            await interaction.response.send_modal(_QuestionForm(self, attachments, texts, custom_id))

    async def on_command(self, interaction: discord.Interaction, command: Command) -> None:
        """Run a command and reply to the requester alone."""
        requester = self._requester(interaction)
        texts = self._service.texts(requester)
        menus = texts("help.menus", describe=texts("command.describe"), ask=texts("command.ask_about"))
        context = CommandContext(
            self._service,
            requester,
            mention=f"<@{self._reader.bot_id}>",
            format_command=lambda name: f"`/{name}`",
            extra_help=(menus,),
        )
        await self._reply_privately(interaction, run_command(command, context))

    async def on_event(self, interaction: discord.Interaction) -> None:
        """Handle buttons, and forms of an earlier process."""
        custom_id = interaction.custom_id or ""
        if interaction.type is discord.InteractionType.modal_submit:
            is_current = custom_id.startswith(f"{_FORM_PREFIX}{self._process_id}:")
            if custom_id.startswith(_FORM_PREFIX) and not is_current:
                texts = self._service.texts(self._requester(interaction))
                await self._reply_privately(interaction, texts(DenialReason.EXPIRED))
        elif interaction.type is discord.InteractionType.component and (found := read_button(custom_id)) is not None:
            button, owner = found
            if button is Buttons.STOP:
                await self._stop(interaction)
            else:
                await self._regenerate(interaction, owner)

    async def answer(self, interaction: discord.Interaction, text: str, attachments: tuple[Attachment, ...]) -> None:
        """Answer a question through the interaction."""
        requester = self._requester(interaction)
        target = self._target(interaction, requester)
        question = Question(
            requester=requester,
            key=MessageKey(requester.channel, f"interaction {interaction.id}"),
            text=text,
            attachments=attachments,
            fetch=self._reader.fetch,
            location=MessageLocation(int(requester.channel), token=interaction.token).to_json(),
        )
        thinking = asyncio.create_task(target.show_thinking(_THINKING_AFTER_S))
        try:
            await self._service.ask(question, target)
        finally:
            thinking.cancel()
        if not target.is_acknowledged:
            # The core suppresses repeated denials, but each interaction needs a response.
            texts = self._service.texts(requester)
            await self._reply_privately(interaction, texts(DenialReason.BUSY))

    async def _stop(self, interaction: discord.Interaction) -> None:
        requester = self._requester(interaction)
        assert interaction.message is not None
        outcome = await self._service.stop_message(
            requester, MessageKey(requester.channel, str(interaction.message.id))
        )
        if outcome is StopOutcome.STOPPED:
            await interaction.response.defer()  # the answer itself shows that it was stopped
        elif outcome is StopOutcome.NOTHING_RUNNING:
            await interaction.response.edit_message(view=None)  # left by an earlier process
        else:
            await self._reply_privately(interaction, self._service.texts(requester)(outcome))

    async def _regenerate(self, interaction: discord.Interaction, owner: int) -> None:
        requester = self._requester(interaction)
        message = interaction.message
        assert message is not None
        if str(owner) != requester.user and not self._service.is_admin(requester):
            await self._reply_privately(interaction, self._service.texts(requester)(DenialReason.NOT_OWNER))
            return
        await interaction.response.defer()
        target = self._target(interaction, requester, original=str(message.id))
        location = MessageLocation(message.channel.id, token=interaction.token).to_json()
        key = MessageKey(requester.channel, str(message.id))
        denial = await self._service.regenerate(requester, key, target, location=location)
        if denial is None:
            return
        if denial.reason is DenialReason.EXPIRED and await self._ask_again(message, requester, target):
            return
        await interaction.followup.send(self._service.describe_denial(requester, denial), ephemeral=True)

    async def _ask_again(self, answer: discord.Message, requester: Requester, target: InteractionTarget) -> bool:
        """Ask the question that an answer replies to again, from the channel; False if that is impossible."""
        asked = replied_to_key(answer)
        message = await self._reader.fetch_message(asked) if asked is not None else None
        if message is None or str(message.author.id) != requester.user:
            return False
        await self._service.ask(self._reader.question(message, requester), target)
        return True

    async def _find_images(
        self, interaction: discord.Interaction, message: discord.Message
    ) -> tuple[Attachment, ...] | None:
        """The message's images; None, after a private reply, if there are none."""
        attachments = self._reader.attachments(message)
        if not attachments:
            texts = self._service.texts(self._requester(interaction))
            await self._reply_privately(interaction, texts("hint.nothing_usable"))
            return None
        return attachments

    def _requester(self, interaction: discord.Interaction) -> Requester:
        # A channel of a type that the library doesn't support is identified by its server, or by the person.
        channel = interaction.channel or discord.Object(interaction.guild_id or interaction.user.id)
        return requester_from(
            interaction.user,
            channel,
            guild_id=interaction.guild_id,
            language=interaction.locale.value,
        )

    def _target(
        self, interaction: discord.Interaction, requester: Requester, *, original: str | None = None
    ) -> InteractionTarget:
        return InteractionTarget(
            interaction,
            requester=int(requester.user),
            texts=self._service.texts(requester),
            channel=self._reader.channel(int(requester.channel)),
            original=original,
        )

    async def _reply_privately(self, interaction: discord.Interaction, text: str) -> None:
        await interaction.response.send_message(text, ephemeral=True)
