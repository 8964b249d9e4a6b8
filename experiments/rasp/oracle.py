"""A compiled program run edge by edge in NumPy, float64: nothing of `tcircuits.circuits` is used.

Edges are named as there (`embed -> head 0.0 v`, `mlp 1 -> logits`), so that the two can be compared. A reader's input
is the stream as it is now, with what removed edges bring replaced by what their writers write in the reference run:

    heard = stream - sum over removed w of (out_w - reference_w)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from experiments.rasp.network import Network
from tcircuits.types import Bool, Float, Int

ROLES = ("q", "k", "v")
CLEAR = 0.5  # a value is chosen where it is written by so much more than the next one
NEAR = 0.25  # or where a number is so near to it, in units of the smallest gap of two values


@dataclass(frozen=True)
class Plain:
    """Weights of a program in float64, and the names of its writers and readers."""

    net: Network

    @cached_property
    def w(self) -> dict[str, np.ndarray]:
        """The weights."""
        return {name: a.astype(np.float64) for name, a in self.net.weights.items()}

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Layers and heads."""
        return self.w["w_q"].shape[0], self.w["w_q"].shape[2]

    @cached_property
    def writers(self) -> list[str]:
        """In the order in which they write."""
        L, H = self.sizes
        return ["embed", *(n for i in range(L) for n in (*(f"head {i}.{h}" for h in range(H)), f"mlp {i}"))]

    def readers(self) -> Iterator[tuple[str, int]]:
        """Names, and how many writers come before."""
        L, H = self.sizes
        for i in range(L):
            before = 1 + i * (H + 1)
            yield from ((f"head {i}.{h} {role}", before) for role in ROLES for h in range(H))
            yield f"mlp {i}", before + H
        yield "logits", 1 + L * (H + 1)

    @cached_property
    def edges(self) -> list[tuple[str, str]]:
        """All pairs of writer and reader."""
        return [(w, reader) for reader, before in self.readers() for w in self.writers[:before]]

    def reads(self, reader: str) -> Float[np.ndarray, "D X"]:
        """The matrix through which a reader hears the stream."""
        if reader == "logits":
            return self.w["unembed"]
        kind, where, *role = reader.split()
        if kind == "mlp":
            return self.w["w_in"][int(where)]
        layer, head = (int(i) for i in where.split("."))
        return self.w[f"w_{role[0]}"][layer, :, head]

    def run(
        self,
        tokens: Int[np.ndarray, "N T"],
        removed: frozenset[tuple[str, str]] = frozenset(),
        reference: dict[str, np.ndarray] | None = None,
    ) -> tuple[Float[np.ndarray, "N T O"], dict[str, np.ndarray]]:
        """What is written to the output space, and what each writer writes, [N, T, D]."""
        out: dict[str, np.ndarray] = {"embed": self.w["embed"][tokens] + self.w["pos_embed"][: tokens.shape[1]]}
        stream, by_reader = out["embed"], {}
        for writer, reader in removed:
            by_reader.setdefault(reader, []).append(writer)

        def heard(reader: str) -> np.ndarray:
            x = stream
            for writer in by_reader.get(reader, ()):
                assert reference is not None
                x = x - (out[writer] - reference[writer])
            return x @ self.reads(reader)

        L, H = self.sizes
        for i in range(L):
            for h in range(H):
                q, k, v = (heard(f"head {i}.{h} {role}") for role in ROLES)
                out[f"head {i}.{h}"] = self._pattern(q, k) @ v @ self.w["w_o"][i, h]
            stream = stream + sum(out[f"head {i}.{h}"] for h in range(H))
            out[f"mlp {i}"] = np.maximum(heard(f"mlp {i}"), 0) @ self.w["w_out"][i]
            stream = stream + out[f"mlp {i}"]
        return heard("logits"), out

    def _pattern(self, q: Float[np.ndarray, "N T K"], k: Float[np.ndarray, "N T K"]) -> Float[np.ndarray, "N T T"]:
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        if self.net.causal:
            scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def chosen(self, outputs: Float[np.ndarray, "N T O"]) -> Int[np.ndarray, "N T"]:
        """Indices of `choices`; -1 where no value stands out (`CLEAR`, `NEAR`)."""
        if self.net.categorical:
            if outputs.shape[-1] == 1:
                return np.where(outputs[..., 0] > CLEAR, 0, -1)
            ranked = np.sort(outputs, -1)
            return np.where(ranked[..., -1] - ranked[..., -2] > CLEAR, outputs.argmax(-1), -1)
        v = np.asarray(self.net.choices, float)
        apart = np.abs(outputs[..., :1] - v)
        return np.where(apart.min(-1) < NEAR * np.diff(v).min(), apart.argmin(-1), -1)

    def shares_dimension(self, edge: tuple[str, str]) -> Bool[np.ndarray, " D"]:
        """Which dimensions of the stream (see `Network.labels`) the writer can write and the reader hears."""
        writer, reader = edge
        hears = np.abs(self.reads(reader)).max(1) > 0
        if writer == "embed":
            return hears & (np.abs(self.w["embed"]).max(0) + np.abs(self.w["pos_embed"]).max(0) > 0)
        kind, where = writer.split()
        if kind == "mlp":
            return hears & (np.abs(self.w["w_out"][int(where)]).max(0) > 0)
        layer, head = (int(i) for i in where.split("."))
        moved = self.w["w_v"][layer, :, head] @ self.w["w_o"][layer, head]
        return hears & (np.abs(moved).max(0) > 0)
