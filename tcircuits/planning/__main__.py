"""`python -m tcircuits.planning`: makes one plan in a process of its own; request and answer are JSON lines."""

import json
import sys

from tcircuits.files.typed import built
from tcircuits.planning.devices import MOST_FORCED, own_compiler, prepare
from tcircuits.planning.hardware import larger_first, parse_topology
from tcircuits.planning.making import make, with_smallest
from tcircuits.planning.request import Request
from tcircuits.types import InputError


def main() -> None:
    """Read a request, print the plan; what is refused is an answer too."""
    asked = json.loads(sys.stdin.read())
    request, topology = built(Request, asked["request"]), parse_topology(asked["topology"])
    largest = larger_first(topology.device.kind)[0].devices
    if not own_compiler(topology) or topology.device.kind == "cpu":
        largest = max(topology.devices, MOST_FORCED if topology.device.tpu else 8)
    prepare(topology, largest)
    try:
        plan = make(request, topology)
        if asked["smallest"]:
            plan = with_smallest(plan, request, topology, largest)
        print(json.dumps(plan.as_dict()))
    except InputError as problem:
        print(json.dumps({"problem": str(problem)}))


if __name__ == "__main__":
    main()
