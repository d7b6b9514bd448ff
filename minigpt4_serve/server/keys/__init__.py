"""API keys and the quotas they carry. Knows no HTTP and no Ray."""
