"""Servers that need every message, and where they stand in a tree."""

from dataclasses import dataclass

from torch import Tensor

from tierfed.algorithm import Info, Relay, Tier
from tierfed.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Idle(Tier):
    """A cloud above independent servers: rounds tick, empty messages travel."""

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return {}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        return state


@dataclass(frozen=True, kw_only=True)
class Server(Tier):
    """A server that hears every child by itself, remembers it in a row, and passes nothing up; for `server_at`."""

    reduce = "stack"
    sees = "all"

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        return kept

    def report(self, state: Tree) -> Tree:
        return {}


def server_at(where_: str, server: Tier, shape: tuple[int, ...]) -> tuple[Tier, ...]:
    """A server that needs every message: at the cloud over relays, or one instance at every lowest fog under an idle
    cloud.
    """
    relays = [Relay() for _ in shape[2:]]
    return (server, *relays) if where_ == "cloud" or not relays else (Idle(), *relays[1:], server)
