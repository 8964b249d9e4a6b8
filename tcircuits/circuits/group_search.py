"""Find a circuit by ablating groups: down a tree of units, the groups that matter most first (adaptive group tests).

With m(C) the metric of circuit C, U all units, the effect of a set S is

    D_S = m(B) - m(B without S)         mean over prompts, with its standard error

with B = U (`base="whole"`), or what is left of U without all that was dropped so far (`left`). Two units that stand in
for each other have no effect one by one; their common ancestor has. A step opens the sets of greatest effect, measures
all their children in one call, and drops those with D + 2 se < least; leaves become candidates. With `left` the dropped
sets are also ablated together, so that of two that stand in for each other, in whatever branches, one is kept: the
longest run of them, the least effect first, that costs less than `least` a set goes, the others are measured again
later; when the tree is used up, leaves are looked into, unit by unit. It ends at the budget, when nothing is left to
measure, or when the candidates alone reach a wanted faithfulness. It costs about |C| b log_b(n / |C|) runs in place of
n. `trimming` then makes candidates a circuit.
"""

import heapq
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal, get_args

import numpy as np

from tcircuits.circuits.meter import TOGETHER, Meter
from tcircuits.circuits.metrics import faithfulness
from tcircuits.circuits.tree import Hierarchy, check_hierarchy
from tcircuits.types import Bool, Float, InputError, Int

OPENED = 8  # sets of one step
LARGE = 8  # a leaf with more members is measured one by one
CERTAIN = 2.0  # standard errors
LITTLE = 1e-6  # part of an effect, where something must not be 0
PREFIXES = 4  # of the sets to drop that are ablated together

Base = Literal["whole", "left"]


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        candidates: units of the leaves that were reached, [U].
        order: units worth keeping, the best first: by their part of the effect of the smallest set that they were
            measured in.
        density: that part, [U]: by the size of the prior, else evenly; 0 of those that were dropped.
        sets: members, effect and standard error of every set that was measured, in order.
        spent: evaluations, the meter's first two counted.
        stopped: `budget`, `target`, or `done`.
    """

    candidates: Bool[np.ndarray, " U"]
    order: Int[np.ndarray, " k"]
    density: Float[np.ndarray, " U"]
    sets: tuple[tuple[Int[np.ndarray, " s"], float, float], ...]
    spent: int
    stopped: str


@dataclass(frozen=True)
class How:
    """How groups are searched.

    Attributes:
        budget: evaluations until which a step is begun; the meter's count so far is part of it.
        least: effects that matter, as a part of what all units are worth.
        base: see the module.
        signed: sets that lower the metric matter; otherwise those that raise it do as well.
        target: stop when the candidates alone are so faithful; asks for one more evaluation a step.
        beta: how much of a set's summed prior is added to its priority.
        opened: sets of one step.
    """

    budget: int
    least: float = 0.002
    base: Base = "left"
    signed: bool = False
    target: float | None = None
    beta: float = 0.0
    opened: int = OPENED

    def __post_init__(self) -> None:
        wrong = [] if self.base in get_args(Base) else [f"base={self.base!r} ({' or '.join(get_args(Base))})"]
        wrong += [] if self.least >= 0 else [f"least={self.least} (0 or more)"]
        wrong += [] if self.opened >= 1 else [f"opened={self.opened} (1 or more)"]
        wrong += [] if self.budget >= 1 else [f"budget={self.budget} (1 or more)"]
        if wrong:
            raise InputError("groups cannot be searched with " + ", ".join(wrong))


def group_search(
    measure: Meter,
    h: Hierarchy,
    units: Int[np.ndarray, " n"],
    how: How,
    prior: Float[np.ndarray, " U"] | None = None,
) -> Search:
    """Search down a tree; see the module.

    Args:
        measure: from `meter.meter`, or any other.
        h: a hierarchy of n things.
        units: the number of each thing among the units. Others are never ablated.
        how: budget, thresholds, base.
        prior: a score of each unit (same scale as effects), [U]; shares the effect of a set among its units.

    Raises:
        InputError: a budget that is spent, units that are none or that are there twice, a tree of other things.
    """
    check_hierarchy(h)
    n = measure.n
    wrong = [] if how.budget > measure.spent else [f"budget={how.budget}, {measure.spent} already spent: give more"]
    if h.n != len(units) or len(np.unique(units)) != len(units) or units.min() < 0 or units.max() >= n:
        wrong.append(f"units are not {h.n} different numbers in 0..{n - 1}, one a thing of the tree")
    if prior is not None and prior.shape != (n,):
        wrong.append(f"the prior has shape {prior.shape}, not {(n,)}")
    if wrong:
        raise InputError("groups cannot be searched: " + "; ".join(wrong))
    return _Searching(measure, h, units, how, np.zeros(n) if prior is None else np.asarray(prior, float)).run()


@dataclass(frozen=True)
class _Set:
    """Some units: a node of the tree, or a single member of a large leaf (-1); `again`: to be measured once more."""

    node: int
    members: Any
    again: bool = False


class _Searching:
    """The state of a search; lives for one call."""

    def __init__(self, measure: Meter, h: Hierarchy, units: Any, how: How, prior: Any) -> None:
        self.measure, self.h, self.units, self.how, self.prior = measure, h, units, how, prior
        self.ticket, self.heap, self.leaves, self.inside = count(), list[Any](), list[Any](), False
        self.candidates, self.density = np.zeros(measure.n, bool), np.zeros(measure.n)
        self.base, self.worth, self.sets = np.ones(measure.n, bool), measure.full, list[Any]()
        self.push(_Set(0, units[h.members(0)]), np.inf)

    def push(self, s: _Set, priority: float) -> None:
        """Put a set on the heap."""
        heapq.heappush(self.heap, (-priority, next(self.ticket), s))

    def below(self, s: _Set) -> list[_Set]:
        """What is measured when a set is opened: itself again, its children, the members of a large leaf, nothing."""
        if s.again:
            return [replace(s, again=False)]
        kids = [] if s.node < 0 else [_Set(int(k), self.units[self.h.members(int(k))]) for k in self.h.kids(s.node)]
        if kids or len(s.members) <= (1 if self.inside else LARGE):
            return kids
        return [_Set(-1, s.members[i : i + 1]) for i in range(len(s.members))]

    def step(self, room: int) -> list[_Set]:
        """Sets to measure next, at most `room`; leaves on top of the heap become candidates."""
        found: list[_Set] = []
        for _ in range(self.how.opened):
            while self.heap and not self.below(self.heap[0][2]):
                item = heapq.heappop(self.heap)
                self.candidates[item[2].members] = True
                self.leaves.append((item[2], -item[0]))
            if not self.heap or len(found) >= room:
                break
            below, left = self.below(self.heap[0][2]), room - len(found)
            if len(below) <= left:
                found += self.below(heapq.heappop(self.heap)[2])
            elif all(len(s.members) == 1 for s in below):
                found += self.some(left)
                break
            else:
                break
        return found

    def some(self, room: int) -> list[_Set]:
        """The first members of the large leaf on top, by the prior; the rest waits in its place."""
        priority, _, s = heapq.heappop(self.heap)
        members = s.members[np.argsort(-np.abs(self.prior[s.members]), kind="stable")]
        self.push(_Set(-1, members[room:]), -priority)
        return [_Set(-1, members[i : i + 1]) for i in range(room)]

    def run(self) -> Search:
        """Step by step until there is a reason to stop."""
        calls = self.measure.overhead + (self.how.target is not None)
        calls += 2 * self.measure.overhead + PREFIXES + 1 if self.how.base == "left" else 0
        stopped = "done"
        while self.heap:
            found = self.step(self.how.budget - self.measure.spent - calls)
            if not found:
                stopped = "budget" if self.heap else "done"
                if self.heap or self.inside or self.how.base == "whole":
                    break
                self.inside = True  # budget is left: look into the leaves
                for leaf in self.leaves:
                    self.push(*leaf)
                continue
            if self.take(found):
                stopped = "target"
                break
        ranked = np.flatnonzero(self.density > 0)
        order = ranked[np.argsort(-self.density[ranked], kind="stable")]
        return Search(self.candidates, order, self.density, tuple(self.sets), self.measure.spent, stopped)

    def part(self, s: _Set) -> Float[np.ndarray, " s"]:
        """How a set's effect is shared by its members: by the size of their prior, else evenly."""
        size = np.abs(self.prior[s.members])
        return (size + LITTLE * size.max() + 1e-300) / np.sum(size + LITTLE * size.max() + 1e-300)

    def take(self, found: list[_Set]) -> bool:
        """Measure sets, keep or drop them; whether the candidates alone reach the target."""
        masks = np.repeat(self.base[None], len(found) + (self.how.target is not None), 0)
        for row, s in zip(masks, found, strict=False):
            row[s.members] = False
        if self.how.target is not None:
            masks[-1] = self.candidates
        values = self.measure(masks)
        effect, error = self.measure.lost(self.worth, values[: len(found)])
        size, low = effect if self.how.signed else np.abs(effect), []
        for i, s in enumerate(found):
            self.sets.append((s.members, float(effect[i]), float(error[i])))
            if size[i] + CERTAIN * error[i] < self.how.least:
                low.append(i)
            else:
                self.keep(s, float(size[i]))
        low.sort(key=lambda i: float(size[i]))
        self.drop([found[i] for i in low])
        if self.how.target is None:
            return False
        return bool(faithfulness(values[-1], self.measure.full, self.measure.none) >= self.how.target)

    def keep(self, s: _Set, size: float) -> None:
        """A set that matters, to be opened in its turn."""
        self.density[s.members] = max(size, LITTLE) * self.part(s)
        self.push(s, size + self.how.beta * float(self.prior[s.members].sum()))

    def drop(self, low: list[_Set]) -> None:
        """Take sets out that do not matter, the least first; with `left` only as many as do not matter together."""
        if not low:
            return
        gone = len(low)
        if self.how.base == "left":
            ends = np.unique(np.ceil(np.arange(1, PREFIXES + 1) * len(low) / PREFIXES).astype(int))
            masks = np.repeat(self.base[None], len(ends), 0)
            for row, end in zip(masks, ends, strict=True):
                row[np.concatenate([s.members for s in low[:end]])] = False
            values = self.measure(masks)
            effect, error = self.measure.lost(self.worth, values)
            size = effect if self.how.signed else np.abs(effect)
            fine = size + CERTAIN * error < self.how.least * ends
            # the first set cost too little alone, so one always may go
            last = len(ends) - 1 if fine.all() else int(np.argmin(fine)) - 1
            gone = int(ends[last]) if last >= 0 else 1
            if last >= 0:
                self.worth, self.base = values[last], masks[last]
            else:
                self.base = self.base.copy()
                self.base[low[0].members] = False
                self.worth = self.measure(self.base[None])[0]
        for s in low[:gone]:
            self.density[s.members], self.candidates[s.members] = 0.0, False
        for s in low[gone:]:
            self.density[s.members] = LITTLE * self.part(s)
            self.push(replace(s, again=True), 0.0)


def single_search(measure: Meter, order: Int[np.ndarray, " k"], *, budget: int, batch: int = TOGETHER) -> Search:
    """The usual way: ablate units one by one in a given order, as far as the budget goes; the best first.

    Raises:
        InputError: no budget.
    """
    room = budget - measure.spent
    calls = -(-room // (batch + measure.overhead)) if room > 0 else 0
    order = order[: max(0, room - calls * measure.overhead)]
    if not len(order):
        raise InputError(f"budget={budget}, {measure.spent} already spent: give more")
    density, sets = np.zeros(measure.n), []
    for at in range(0, len(order), batch):
        units = order[at : at + batch]
        masks = np.ones((len(units), measure.n), bool)
        masks[np.arange(len(units)), units] = False
        effect, error = measure.lost(measure.full, measure(masks))
        density[units] = effect
        sets += [(units[i : i + 1], float(effect[i]), float(error[i])) for i in range(len(units))]
    kept = np.zeros(measure.n, bool)
    kept[order] = True
    ranked = order[np.argsort(-density[order], kind="stable")]
    return Search(kept, ranked, density, tuple(sets), measure.spent, "budget")
