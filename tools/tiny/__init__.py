"""The embedded model: its data, its training and its evaluation. Start with README.md."""
