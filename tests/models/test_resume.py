"""A forward pass that starts in the middle, and one whose sites are replaced, against the whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.models.forward import SiteHook
from tcircuits.models.resume import forward_from
from tests import bridge
from tests.reference import builders
from tests.reference import model as ref
from tests.tiers import tiered

pytestmark = pytest.mark.usefixtures("quick_compile")

FAMILIES = ("gpt2", "neox", "llama", "gemma2", "gemma3", "smollm3", "relu", "attn_only")


@pytest.mark.parametrize("family", tiered(FAMILIES, ("gpt2", "neox", "gemma3", "attn_only")))
@pytest.mark.usefixtures("x64")
def test_the_rest_of_a_pass_gives_the_same_logits(family):
    cfg = builders.model_config(family)
    params = builders.make_params(cfg)
    tokens = np.random.default_rng(0).integers(0, cfg.d_vocab, 6)
    expected = ref.run(cfg, params, tokens)
    rest = jax.jit(forward_from, static_argnums=0)
    for first in range(cfg.n_layers):
        x = jnp.asarray(expected.sites["resid_pre"][first])
        got = rest(bridge.model_config(cfg), bridge.params(params, "float64"), x, first)
        np.testing.assert_allclose(got, expected.logits, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("family", "site"),
    [("llama", s) for s in ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_raw", "mlp_out", "resid_post", "z")]
    + [("gemma2", "mlp_raw"), ("neox", "resid_pre")],
)
@pytest.mark.usefixtures("x64")
def test_a_site_is_replaced_in_the_layers_that_the_hook_changes(family, site):
    cfg = builders.model_config(family)
    params = builders.make_params(cfg)
    tokens = np.random.default_rng(1).integers(0, cfg.d_vocab, 6)

    def change(name, layer, value):
        return np.tanh(2 * value) if (name, layer) == (site, 1) else value

    expected = ref.run(cfg, params, tokens, edit=change).logits
    own, arrays = bridge.model_config(cfg), bridge.params(params, "float64")
    x = jnp.asarray(ref.run(cfg, params, tokens).sites["resid_pre"][0])
    hook = SiteHook(site, lambda layer, value: jnp.where(layer == 1, jnp.tanh(2 * value), value))
    got = jax.jit(lambda x: forward_from(own, arrays, x, 0, swap=hook))(x)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)
