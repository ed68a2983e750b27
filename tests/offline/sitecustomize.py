"""On PYTHONPATH of every process of the tests: no connection leaves this machine.

Names are not looked up and addresses not reached, but for loopback and local sockets.
An attempt raises at once and is written to the file that MINILLM_BLOCKED names.
"""

import ipaddress
import os
import socket

_connect, _connect_ex, _lookup = (
    socket.socket.connect,
    socket.socket.connect_ex,
    socket.getaddrinfo,
)
LOCAL = {"localhost", "", None, socket.gethostname()}


def _is_local(host) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in LOCAL:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(host):
    if path := os.environ.get("MINILLM_BLOCKED"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{host}\n")
    raise OSError(f"the tests run without a network: {host!r} was asked for")


def connect(self, address):
    if isinstance(address, tuple) and not _is_local(address[0]):
        _refuse(address[0])
    return _connect(self, address)


def connect_ex(self, address):
    if isinstance(address, tuple) and not _is_local(address[0]):
        _refuse(address[0])
    return _connect_ex(self, address)


def getaddrinfo(host, *arguments, **options):
    if not _is_local(host):
        _refuse(host)
    return _lookup(host, *arguments, **options)


socket.socket.connect, socket.socket.connect_ex = connect, connect_ex
socket.getaddrinfo = getaddrinfo
