"""Where a client finds siltd and its keys, and the key files that `silt key new` makes.

An argument wins over the environment (SILT_ENDPOINT, SILT_SERVER_KEY, SILT_CLIENT_KEY), that over
$XDG_CONFIG_HOME/silt/client.conf with lines `endpoint = …`, `server-key = …`, `client-key = FILE`.
"""

from __future__ import annotations

import os
import pathlib
import re
import socket
import struct
from typing import Dict, NamedTuple, Optional

import zmq
import zmq.utils.z85

from ._errors import Denied, Invalid

SETTINGS = ("endpoint", "server-key", "client-key")


class Curve(NamedTuple):
    """What a socket that speaks to the network needs; all of Z85 text."""

    server_key: bytes
    public_key: bytes
    secret_key: bytes


class Settings(NamedTuple):
    endpoint: str
    curve: Optional[Curve]


def settings(endpoint: Optional[str], server_key: Optional[str],
             client_key: Optional[str]) -> Settings:
    file = _file(_folder() / "client.conf")
    where = _choose(endpoint, "endpoint", file) or _local()
    if not where.startswith("tcp://"):
        return Settings(where, None)
    port = where.rpartition(":")[2]  # ZeroMQ takes 99999 for what is left of it in 16 bits
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise Invalid(f'cannot connect to "{where}": give tcp://HOST:PORT, the port a number from '
                      "1 to 65535")
    server = _choose(server_key, "server-key", file)
    if not server:
        raise Denied(f"{where} is reached over the network, which needs siltd's server key: `silt "
                     "key server` on its machine prints it; give it as server_key=, "
                     "SILT_SERVER_KEY, or server-key in client.conf")
    if not is_key(server):
        raise Invalid(f'"{server[:60]}" is no server key: it has 40 characters, as `silt key '
                      "server` on siltd's machine prints it")
    path = _choose(client_key, "client-key", file) or str(_folder() / "client.key")
    public, secret = read_key(path)
    return Settings(where, Curve(server.encode(), public.encode(), secret.encode()))


def read_key(path: str) -> "tuple[str, str]":
    """Public and secret key of a file that nobody else may read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096)
    except OSError as error:
        raise Denied(f"the client key {path} cannot be read: {error.strerror}; `silt key new` "
                     "makes one") from None
    if mode & 0o077:
        raise Denied(f"the client key {path} can be read by others: chmod 600 it")
    found = dict(re.findall(r"^(public-key|secret-key) = (\S{40})$", text, re.M))
    public, secret = found.get("public-key", ""), found.get("secret-key", "")
    if not is_key(secret) or zmq.curve_public(secret.encode()).decode() != public:
        raise Invalid(f"{path} is no client key: `silt key new` makes one")
    return public, secret


def is_key(text: str) -> bool:
    if len(text) != 40 or not text.isascii():
        return False
    try:
        zmq.utils.z85.decode(text.encode())  # type: ignore[no-untyped-call]
    except (KeyError, ValueError, struct.error):
        return False
    return True


def _choose(given: Optional[str], name: str, file: Dict[str, str]) -> str:
    variable = "SILT_" + name.upper().replace("-", "_")
    return str(given or os.environ.get(variable, "") or file.get(name, ""))


def _folder() -> pathlib.Path:
    config = os.environ.get("XDG_CONFIG_HOME", "")
    home = pathlib.Path(os.environ.get("HOME", "")) / ".config"
    return (pathlib.Path(config) if config.startswith("/") else home) / "silt"


def _file(path: pathlib.Path) -> Dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}  # most have none
    found: Dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.partition("=")
        name = name.strip()
        if not name and not equals or name.startswith("#"):
            continue
        if name not in SETTINGS or not equals:
            raise Invalid(f"{path} line {number} is not `endpoint`, `server-key` or `client-key` "
                          "= value")
        found.setdefault(name, value.strip())
    return found


def is_strangers(endpoint: str, fd: int) -> bool:
    """Whether another user listens at the other end of a new connection where only this one or root
    should: anybody could have made this user's folder in /tmp first."""
    if not endpoint.startswith(f"ipc:///tmp/silt-{os.getuid()}/"):
        return False
    try:
        with socket.socket(fileno=os.dup(fd)) as link:
            peer = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return True
    return struct.unpack("3i", peer)[1] not in (os.getuid(), 0)


def _local() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = runtime if runtime.startswith("/") else f"/tmp/silt-{os.getuid()}"
    return f"ipc://{folder}/silt.sock"
