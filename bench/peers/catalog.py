"""All peers, in the order in which they run."""

from __future__ import annotations

from .chunk_attention import ChunkAttention
from .fa3 import Fa3
from .fa4 import Fa4
from .flash import FlashLevels, FlashPlain
from .flashinfer_peers import FlashInferCascade, FlashInferDecode
from .flex import Flex
from .llama_cpp import LlamaCpp
from .pando_peer import Pando
from .peer import Peer
from .torch_peers import Hydragen, TorchLevels, TorchPlain


def peers() -> dict[str, Peer]:
    made: list[Peer] = [
        Pando("pando", "Pando's plan: shares what its cost model finds worth it"),
        Pando("pando-unshared", "Pando's plan without sharing", share="none"),
        Pando("pando-invariant", "Pando's batch-invariant plan", batch_invariant=True),
        FlashLevels(Fa3()),
        FlashPlain(Fa3()),
        FlashLevels(Fa4()),
        FlashPlain(Fa4()),
        FlashInferCascade(),
        FlashInferDecode(),
        TorchLevels("flash"),
        TorchPlain("flash"),
        TorchLevels("cudnn"),
        TorchPlain("cudnn"),
        Hydragen(),
        ChunkAttention(),
        Flex(),
        LlamaCpp(),
    ]
    return {peer.name: peer for peer in made}


def chosen(names: str | None, device: str) -> list[str]:
    """Of names with commas, by default nearly all for the device; ValueError for another name."""
    known = peers()
    if names is None:
        here = [name for name, peer in known.items() if device in peer.devices]
        return [name for name in here if name != "pando-invariant"]
    wanted = names.split(",")
    for name in wanted:
        if name not in known:
            raise ValueError(f'peers: got "{name}", want some of {", ".join(known)}')
    return wanted
