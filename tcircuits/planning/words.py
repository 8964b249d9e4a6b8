"""A plan in words: rows of a table, facts, and what to do where it does not fit."""

from collections import Counter

from tcircuits.planning.result import GRAPH, Line, Plan


def amount(x: float, unit: str = "B") -> str:
    """A number with a prefix: 1.23 GB."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if x >= size:
            return f"{x / size:.3g} {prefix}{unit}"
    return f"{x / 1e3:.3g} k{unit}" if x else "0"


def table(plan: Plan) -> list[dict[str, str]]:
    """One row a program; memory and work are those of one device."""
    return [
        {
            "program": line.name,
            "runs": str(line.runs),
            "memory": amount(line.memory),
            "FLOP": amount(line.flops, ""),
            "bytes": amount(line.n_bytes),
            "moved": amount(line.moved),
            "seconds": f"{line.seconds:.2g}",
        }
        for line in plan.lines
    ]


def facts(plan: Plan) -> dict[str, str]:
    """What the plan comes to."""
    counted: Counter[str] = Counter()
    for line in plan.lines:
        counted.update(line.collectives)
    ran = ", ".join(f"{n:,.0f} {kind}" for kind, n in counted.items())
    share = plan.needs / plan.capacity
    whose = "by the devices' own compiler" if plan.exact else "an estimate: compiled for as many devices of this host"
    told = {
        "memory of a device": f"{amount(plan.needs)} of {amount(plan.capacity)} ({share:.0%}), {whose}",
        "parameters and transcoders": f"{amount(plan.persistent)} on each of {plan.devices} devices",
        "memory of each host": f"{amount(plan.host)} for a graph of {plan.edges:,} edges",
        "FLOP of a device": amount(plan.flops, ""),
        "bytes of its memory": amount(plan.n_bytes),
        "bytes between devices": f"{amount(plan.moved)} ({ran or 'no collectives'})",
        "estimated time": f"{plan.seconds:.3g} s, {plan.device_hours:.2g} device-hours, without compiling, loading and "
        "the host's part",
        "divided": "heads, neurons, features and vocabulary over all devices; prompts and targets over none",
    }
    if plan.whole:
        told["not divided"] = "; ".join(plan.whole)
    if plan.smallest is not None:
        told["smallest that fits"] = plan.smallest
    return told


def advice(plan: Plan, *, looked: bool = True) -> str:
    """Why a plan does not fit, and what would."""
    kind = plan.topology.split(":")[0]
    where = f"{amount(plan.needs)} of each device's {amount(plan.capacity)} ({plan.topology})"
    fits = f"the smallest that fits is {plan.smallest}" if plan.smallest else f"no {kind} that can be planned here fits"
    fits = fits if looked and not plan.shared else "a larger machine"
    return f"does not fit: {_what(plan)} take {where}; {fits}; on this one, {_option(plan)}"


def _worst(plan: Plan) -> Line | None:
    return max(plan.lines, key=lambda line: line.memory, default=None)


def _what(plan: Plan) -> str:
    if plan.persistent > plan.capacity:
        return "parameters and transcoders alone"
    if plan.refused:
        return f"buffers of the program after {plan.lines[-1].name!r}" if plan.lines else "buffers of the first program"
    worst = _worst(plan)
    return "rows and graph" if worst is None or worst.memory < plan.peak else f"buffers of {worst.name!r}"


def _option(plan: Plan) -> str:
    """The option that reduces what is too large."""
    worst = _worst(plan)
    if plan.persistent > 0.5 * plan.capacity or worst is None:
        return "--dtype bfloat16 halves parameters and transcoders (float32 is the default)"
    if worst.sweeps or worst.name.endswith("influence sketch"):
        return "give a smaller --chunk, fewer --tokens or fewer --active features"
    if any(line.name.startswith(GRAPH) for line in plan.lines) and not worst.name.startswith(GRAPH):
        return "give fewer --tokens or fewer --prompts"
    return "give fewer --tokens, fewer --max-features, or transcoders with fewer --active features"
