"""Prompts of the MiniGPT-4 family: variants, templates, tokenization, history truncation. Imports no torch."""
