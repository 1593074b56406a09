"""Near-duplicate prompts: found by MinHash, kept on one side of the held-out split.

The words of a prompt are cut into overlapping triples; 64 hashes estimate how many triples two
prompts share (Broder 1997), and 16 bands of 4 bring together those that may share most. Seeds are
fixed and the key of a group is its smallest digest, so neither machine nor order matters. About
400 bytes a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Signature = NDArray[np.uint32]
HASHES, BANDS, SEED = 64, 16, 1
WORDS = 3
# From this share of common triples on, two prompts are one question put twice.
ALIKE = 0.8
_WORD = re.compile(r"\w+")


def groups(
    prompts: Iterable[tuple[str, str]], others: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """Return the group's key for each prompt that has near-duplicates; ``prompts`` are (id, text).

    Nearness is handed on: of three in a row, the first and the last are in one group. ``others``
    are grouped with them, but the key is never theirs where a prompt is in the group.
    """
    signatures_of = {one: signature(text) for one, text in prompts}
    own = len(signatures_of)
    for one, text in others:
        if one not in signatures_of:
            signatures_of[one] = signature(text)
    if not signatures_of:
        return {}
    ids, found = list(signatures_of), list(signatures_of.values())
    signatures = np.stack(found)
    parent = list(range(len(ids)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for band in np.split(signatures, BANDS, axis=1):
        order = np.lexsort(band.T)
        same = (band[order[1:]] == band[order[:-1]]).all(axis=1)
        head = 0  # where the run of equal bands begins
        for place, equal in enumerate(same, start=1):
            if not equal:
                head = place
                continue
            for other in {int(order[head]), int(order[place - 1])}:
                this = int(order[place])
                if (signatures[this] == signatures[other]).mean() >= ALIKE:
                    parent[root(this)] = root(other)
    members: dict[int, list[int]] = {}
    for place in range(len(ids)):
        members.setdefault(root(place), []).append(place)
    keys: dict[str, str] = {}
    for some in members.values():
        if len(some) > 1:
            key = min(ids[place] for place in some if place < own or some[0] >= own)
            keys |= {ids[place]: key for place in some}
    return keys


def signature(text: str) -> Signature:
    """Return the 64 smallest hashes of a text's word triples, as uint32."""
    from datasketch import MinHash  # brings SciPy with it, 60 MB that few builds need

    words = _WORD.findall(text.casefold())
    triples = {" ".join(words[at : at + WORDS]) for at in range(max(1, len(words) - WORDS + 1))}
    minhash = MinHash(num_perm=HASHES, seed=SEED)
    minhash.update_batch([one.encode() for one in sorted(triples)])
    return np.asarray(minhash.hashvalues, dtype=np.uint32)
