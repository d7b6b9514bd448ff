"""The server's application and engine in one process under uvicorn, without Ray: ``bare_server SETTINGS.yaml``."""

import sys
from pathlib import Path

import uvicorn

from minigpt4_serve.server.http.routes import create_app
from minigpt4_serve.server.local_engine import load_engine
from minigpt4_serve.settings import read_serve_settings


def main(config: Path) -> None:
    """Serve on the port that the settings name, until SIGINT."""
    settings = read_serve_settings(config, {})
    engine, service = load_engine(settings)
    uvicorn.run(create_app(service), port=settings.port, log_level="error")
    engine.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
