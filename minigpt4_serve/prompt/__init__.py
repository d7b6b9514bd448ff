"""Chats → token ids with image slots, as the MiniGPT-4 family was trained. Needs neither torch nor transformers."""
