"""OpenAI's APIs: request and response models, and the formatters that turn deltas into responses."""
