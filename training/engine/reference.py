"""The reference store: log-probs of responses under a reference model, by content.

One small file per response, named by the digest of everything that its values depend on. A data
set that grows computes only what is new; another base, tokenizer, template, adapter or number
format names other files; a damaged file counts as missing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from training.engine.data import Tree
from training.engine.policy import Policy
from training.engine.tree import build_pack

CHECKSUM = 16  # bytes in front of the values
Values = npt.NDArray[np.float32]


class ReferenceStore:
    """Per-token log-probs [length] of a response behind its prompt, for one reference model."""

    def __init__(self, root: Path, *, base: str, adapter: str, precision: str) -> None:
        """base and adapter are digests ("" for no adapter); precision names format and weights."""
        identity = "\0".join(("laurel-reference-1", base, adapter, precision))
        self.identity = identity.encode()
        self.folder = root / hashlib.sha256(self.identity).hexdigest()[:16]

    def get(self, prompt: Sequence[int], response: Sequence[int]) -> Values | None:
        """Return stored values; None when there are none or they are damaged."""
        path = self._path(prompt, response)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        body = content[CHECKSUM:]
        if len(body) != 4 * len(response) or self._checksum(path, body) != content[:CHECKSUM]:
            return None
        return np.frombuffer(body, dtype="<f4")

    def put(self, prompt: Sequence[int], response: Sequence[int], values: Values) -> None:
        """Store values; another process may do the same at the same time."""
        path = self._path(prompt, response)
        path.parent.mkdir(parents=True, exist_ok=True)
        body = np.asarray(values, dtype="<f4").tobytes()
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(self._checksum(path, body) + body)
        os.replace(draft, path)

    def missing(self, tree: Tree) -> Tree | None:
        """Return the part of a tree that has to be computed: its unknown responses, no pairs."""
        unknown = tuple(one for one in tree.responses if self.get(tree.prompt, one) is None)
        return Tree(tree.prompt, unknown, ()) if unknown else None

    def _path(self, prompt: Sequence[int], response: Sequence[int]) -> Path:
        digest = hashlib.sha256(self.identity)
        for tokens in (prompt, response):
            digest.update(len(tokens).to_bytes(8, "little"))
            digest.update(np.asarray(tokens, dtype="<u4").tobytes())
        key = digest.hexdigest()
        return self.folder / key[:2] / key[2:]

    def _checksum(self, path: Path, body: bytes) -> bytes:
        return hashlib.sha256(path.name.encode() + body).digest()[:CHECKSUM]


@torch.no_grad()
def store_group(store: ReferenceStore, policy: Policy, trees: Sequence[Tree]) -> None:
    """Compute the log-probs of one pack of trees with the reference, and store them."""
    pack = build_pack(trees, policy.device)
    values = policy.token_logps(pack).cpu().numpy()
    start = 0
    for tree in trees:
        for response in tree.responses:
            end = start + len(response)
            store.put(tree.prompt, response, values[start:end])
            start = end
