"""What both bots share: access, conversations, prompts, streaming and texts. Imports no chat platform's library."""
