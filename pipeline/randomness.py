"""Random numbers that are functions of their position: a counter-based generator and the keys that address it.

No state of a generator exists between steps, so none has to be saved. A killed run draws the same numbers when it goes
on, with any number of data workers. Philox4x32-10 is from Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3" (section 4.3). It is written out here because numpy's Philox cannot evaluate many counters at once.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import numpy.typing as npt

U64Array = npt.NDArray[np.uint64]
Purpose = Literal[
    "order",
    "crop",
    "color",
    "weak",
    "strong",
    "strong2",
    "select",
    "balance",
    "carve",
    "forward",
    "init",
    "sample",
    "control",
    "mixing",
    "mc_dropout",
    "plugin",
]

_MUL = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def key_of(seed: int, purpose: Purpose, *coordinates: int | str) -> int:
    """The 64-bit key of the run's seed, the purpose of the numbers, and coordinates such as round, epoch or stream."""
    text = "/".join([str(seed), purpose, *map(str, coordinates)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def philox_u32(key: int, positions: npt.ArrayLike, num_draws: int) -> npt.NDArray[np.uint32]:
    """Random 32-bit words [N, num_draws] for N positions; each is a pure function of (key, position, draw).

    A position is any 64-bit integer, such as a stream position or a sample id. One Philox block gives 4 words.
    """
    where = np.asarray(positions).astype(np.uint64, copy=False).reshape(-1, 1)
    num_blocks = -(-num_draws // 4)
    blocks = np.arange(num_blocks, dtype=np.uint64)
    shape = (where.shape[0], num_blocks)
    c0 = np.broadcast_to(where & _LOW, shape)
    c1 = np.broadcast_to(where >> _SHIFT, shape)
    c2 = np.broadcast_to(blocks, shape)
    c3 = np.zeros(shape, np.uint64)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        product0, product1 = c0 * _MUL[0], c2 * _MUL[1]  # 32 x 32 bits give 64 bits and never overflow
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    words = np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)
    return words.reshape(where.shape[0], 4 * num_blocks)[:, :num_draws]


def uniforms(key: int, positions: npt.ArrayLike, num_draws: int = 1) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 [N, num_draws], for N positions; each has 32 random bits, so it is exact."""
    return philox_u32(key, positions, num_draws).astype(np.float64) * 2.0**-32


def normals(key: int, positions: npt.ArrayLike, num_draws: int = 1) -> npt.NDArray[np.float64]:
    """Standard normal numbers, float64 [N, num_draws], for N positions, by Box and Muller (1958); at most 6.7 large."""
    pairs = uniforms(key, positions, 2 * num_draws)
    radius = np.sqrt(-2 * np.log(1 - pairs[:, 0::2]))  # of (0, 1], whose logarithm is finite
    return np.asarray(radius * np.cos(2 * np.pi * pairs[:, 1::2]))


def permutation(key: int, length: int) -> npt.NDArray[np.int64]:
    """A random permutation of range(length), int64 [length], a function of the key alone. The index breaks ties."""
    words = philox_u32(key, np.arange(length, dtype=np.uint64), 2).astype(np.uint64)
    return np.argsort((words[:, 0] << _SHIFT) | words[:, 1], kind="stable").astype(np.int64)


def reseed_torch(key: int) -> None:
    """Reset torch's generators (dropout, stochastic depth, weight init) to a function of the key."""
    import torch  # torch is heavy, and pack needs only the numbers above

    torch.manual_seed(key & 0x7FFFFFFFFFFFFFFF)
