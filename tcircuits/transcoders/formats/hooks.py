"""Names of places in a model, as published dictionaries write them, in our words.

>>> site_of("blocks.8.ln2.hook_normalized", READS), site_of("blocks.8.hook_mlp_out", WRITES)
((8, 'normalized'), (8, 'mlp_out'))
"""

import re
from collections.abc import Mapping

# TransformerLens: hook_normalized is what a norm makes before its gain (of a LayerNorm with gain, folded into what
# follows; of an RMS norm always); hook_mlp_in is the residual stream before the norm.
READS: Mapping[str, str] = {
    "hook_resid_mid": "resid_mid",
    "hook_mlp_in": "resid_mid",
    "ln2.hook_normalized": "normalized",
    "mlp.hook_in": "mlp_in",
}
WRITES: Mapping[str, str] = {"hook_mlp_out": "mlp_out", "mlp.hook_out": "mlp_raw"}
# What goes in and out of modules of Hugging Face's models, where a name means the same in all of them.
MODULE_READS: Mapping[str, str] = {
    "pre_feedforward_layernorm.input": "resid_mid",
    "pre_feedforward_layernorm.output": "mlp_in",
    "mlp.input": "mlp_in",
}
MODULE_WRITES: Mapping[str, str] = {"post_feedforward_layernorm.output": "mlp_out", "mlp.output": "mlp_raw"}
# Modules of Hugging Face's models that are an MLP.
MODULE = r"(?:(?:base_model|model|transformer|gpt_neox|language_model)\.)*(?:layers|h)\.(\d{1,4})\.mlp"


def site_of(name: object, table: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Layer and site of a hook's name `blocks.LAYER.SITE`; None for what it does not say."""
    match = re.fullmatch(r"blocks\.(\d{1,4})\.([\w.]+)", name) if isinstance(name, str) else None
    return (None, None) if match is None else (int(match[1]), table.get(match[2]))


def module_site(name: object, table: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Layer and site of a module's name `model.layers.LAYER.SITE`, as Gemma Scope 2 writes them.

    >>> module_site("model.layers.17.pre_feedforward_layernorm.output", MODULE_READS)
    (17, 'mlp_in')
    """
    match = re.fullmatch(r"(?:\w+\.)*layers\.(\d{1,4}|\{all\})\.([\w.]+)", name) if isinstance(name, str) else None
    if match is None:
        return None, None
    return None if match[1] == "{all}" else int(match[1]), table.get(match[2])


def layer_of_module(name: str) -> int | None:
    """Layer of an MLP's module, as `model.layers.3.mlp`; None for other modules."""
    match = re.fullmatch(MODULE, name)
    return None if match is None else int(match[1])
