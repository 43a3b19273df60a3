"""Counter-based random bits: what an entry draws depends on (seed, tensor, model, index) alone.

Each draw is a 32-bit finaliser in the manner of Murmur3's, with the multipliers that C. Wellons
found by search (hash-prospector, "lowbias32"), keyed twice. Chunking, threads and devices cannot
change a bit of it, and entries can be drawn in any order.
"""

import hashlib

import numpy as np

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


def draw(counter: np.ndarray, keys: tuple[int, int]) -> np.ndarray:
    """The random bits of counters: the definition, written for clarity.

    Args:
        counter: [k] uint64, the low 32 bits of flat indices.
        keys: of `model_keys`.

    Returns:
        [k] uint32.
    """
    mask = np.uint64(0xFFFFFFFF)
    h = (counter * np.uint64(STEP) + np.uint64(keys[0])) & mask
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(FIRST)) & mask
    h ^= np.uint64(keys[1])
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(SECOND)) & mask
    return (h ^ (h >> np.uint64(16))).astype(np.uint32)
