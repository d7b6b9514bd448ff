"""The Discord bot: ``minigpt4-discord``."""
