"""Behaviours as data: prompts with counterfactuals, answers, a metric, disjoint splits, a capability gate.

behaviour = tc.make_behaviour(model, "ioi")
tc.check_capability(model, behaviour)
"""

from tcircuits.tasks.behaviour import SPLITS, Behaviour, Prompts, load_behaviour, save_behaviour
from tcircuits.tasks.gate import Capability, capability, check_capability, own_choices
from tcircuits.tasks.make import TASKS, make_behaviour

__all__ = [
    "SPLITS",
    "TASKS",
    "Behaviour",
    "Capability",
    "Prompts",
    "capability",
    "check_capability",
    "load_behaviour",
    "make_behaviour",
    "own_choices",
    "save_behaviour",
]
