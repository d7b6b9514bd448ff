"""The Telegram bot: ``minigpt4-telegram``."""
