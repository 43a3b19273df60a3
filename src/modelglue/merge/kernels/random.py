"""Counter-based random bits: what an entry draws depends on (seed, tensor, model, index) alone.

Each draw is a 32-bit finaliser in the manner of Murmur3's, with the multipliers that C. Wellons
found by search (hash-prospector, "lowbias32"), keyed twice:

    h = index · STEP + key;  h ^= h >> 16;  h = h · FIRST ^ twist;  h ^= h >> 15;  h *= SECOND;
    h ^= h >> 16

modulo 2³², with (key, twist) from `model_keys`. Chunking, threads and devices cannot change a bit
of it, and entries can be drawn in any order.
"""

import hashlib

FIRST, SECOND = 0x7FEB352D, 0x846CA68B
"""The multipliers."""
STEP = 0x9E3779B9
"""An odd number: index · STEP walks through all 32-bit numbers."""


def tensor_key(seed: int, name: str) -> int:
    """64 bits for one tensor of one merge."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def model_keys(key: int, model: int, index: int) -> tuple[int, int]:
    """Two 32-bit keys of a model and the index's high bits; its low 32 are the counter."""
    mixed = hashlib.blake2b(f"{key}\0{model}\0{index >> 32}".encode(), digest_size=8).digest()
    both = int.from_bytes(mixed, "little")
    return both & 0xFFFFFFFF, both >> 32


def limit(probability: float) -> int:
    """An entry counts if its bits are at most this; −1 for probability 0."""
    return min(round(probability * 2**32), 2**32) - 1
