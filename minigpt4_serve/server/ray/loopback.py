"""Keeps all ports of a local cluster on 127.0.0.1, where Ray would open them on all interfaces."""

import os
from importlib import import_module
from typing import Any

from minigpt4_serve.settings import is_loopback

__all__ = ["bind_replica_to_loopback", "keep_on_loopback"]

_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def keep_on_loopback() -> None:
    """Let this process, and those that it starts, take 127.0.0.1 as the node's address, as Ray does on macOS.

    All of Ray's own servers then listen there only. It ignores a loopback address that is passed to ``ray.init``.
    """
    from ray._private import ray_constants

    os.environ[_VARIABLE] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray reads the variable while it is imported


def bind_replica_to_loopback() -> None:
    """Let the Serve replica of this process listen on loopback if the node's address is one.

    Serve starts a replica's server after its constructor, and always on all interfaces.
    """
    from ray.util import get_node_ip_address

    if not is_loopback(get_node_ip_address()):  # type: ignore[no-untyped-call]
        return
    replica: Any = import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: object, address: str) -> Any:
        return add_port(server, address.replace("[::]:", "127.0.0.1:"))

    replica.add_port_to_grpc_server = add_loopback_port
