"""What a local server's settings need of this machine, checked in milliseconds: no Ray and no torch is imported."""

from minigpt4_serve.model_folder import check_model_type
from minigpt4_serve.server.http.shared_socket import check_address
from minigpt4_serve.server.keys.key_ring import KeyRing
from minigpt4_serve.server.private_folder import PrivateFolder
from minigpt4_serve.serving_memory import check_memory
from minigpt4_serve.settings import ServeSettings

__all__ = ["check_settings", "check_start"]


def check_settings(settings: ServeSettings) -> None:
    """Check what is cheap to check before a process is started or replaced; replicas check the rest.

    Raises:
        InvalidRequest: the keys file holds no key.
        WeightsError: there is no model.
    """
    check_model_type(settings.model.path)
    if settings.keys_file is not None:
        KeyRing(settings.keys_file, settings.api_key)


def check_start(settings: ServeSettings) -> None:
    """Check what a server that doesn't run yet needs: its files, memory, port and temporary folder.

    Raises:
        InvalidRequest: the port is taken, the keys file holds no key, or the model doesn't fit into memory.
        WeightsError: there is no model.
        EngineFailed: the temporary folder can't be written to, or its disk is full.
    """
    check_settings(settings)
    check_memory(settings.model, engines=settings.scale.engines)
    check_address(settings.host, settings.port)
    PrivateFolder().close()
