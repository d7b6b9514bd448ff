"""The server: wire types (``openai``), routes and middleware (``http``), API keys (``keys``), deployments (``ray``)."""
