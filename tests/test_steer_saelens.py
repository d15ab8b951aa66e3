"""Steering by what SAELens wrote, held against SAELens' own splice with its error term kept."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from wrapped import needs, wrapped

from entropy_probe.hooks import read_residuals
from sae_steering import load_sae
from sae_steering.controls import Splice
from sae_steering.edits import MODES
from sae_steering.steering import steer

pytestmark = pytest.mark.slow

KINDS = ("standard", "topk", "batchtopk", "matryoshka_batchtopk", "gated", "jumprelu")
IDS = torch.tensor([[1, *range(10, 32)], [1, 9, 9, 9, 4, *range(40, 58)]])
STRENGTHS = (4.0, 0.5)
CASES = [*((kind, "clamp") for kind in KINDS), ("topk", "add"), ("gated", "ablate")]


def written(kind, folder):
    """Let SAELens write a random dictionary of a kind after block 1; give what it reads again."""
    lens = needs("sae_lens")
    from sae_lens.registry import get_sae_training_class

    body, config = get_sae_training_class(kind)
    options = {"d_in": 32, "d_sae": 80}
    options |= {"k": 6} if "topk" in kind else {}
    options |= {"matryoshka_widths": [16, 80]} if kind.startswith("mat") else {}
    torch.manual_seed(4)
    sae = body(config(**options))
    for parameter in sae.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    sae.cfg.metadata.hook_name = "blocks.1.hook_out"
    sae.cfg.metadata["layer"] = 1
    sae.save_inference_model(folder)
    return lens.SAE.load_from_disk(folder)


def chosen(sae):
    """Give the two features that are most often active, with their strengths."""
    model = tiny_model()
    with read_residuals(model, [1]) as plain, torch.no_grad():
        model(IDS)
        active = (sae.encode(plain[1]) != 0).sum(dim=(0, 1))
    best = active.topk(2)
    assert int(best.values.min()) > 4
    return dict(zip(best.indices.tolist(), STRENGTHS, strict=True))


def by_saelens(sae, mode, features):
    """Give the logits under SAELens' own splice, its activations changed by a hook there."""
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    bridge = wrapped("transformer_lens", "llama", tiny_tokenizer())
    bridge.__class__ = SAETransformerBridge
    bridge._acts_to_saes, bridge._transcoder_output_hooks = {}, {}

    def change(acts, hook):
        changed = acts.to_dense().clone() if acts.is_sparse else acts.clone()
        for feature, strength in features.items():
            new = {"add": changed[..., feature] + strength, "clamp": strength}
            new["ablate"] = changed[..., feature] * (1 - strength)
            changed[..., feature] = new[mode]
        return changed

    hooks = [] if mode is None else [(bridge.get_sae_hook_name(sae), change)]
    with torch.no_grad(), bridge.saes([sae], use_error_term=True), bridge.hooks(fwd_hooks=hooks):
        assert "blocks.1.hook_out" in bridge._acts_to_saes  # a name it misses is only logged there
        return bridge(IDS)


@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_every_kind_steers_every_library_to_what_saelens_gives(kind, mode, tmp_path):
    theirs, sae = written(kind, tmp_path), load_sae(tmp_path)
    features = chosen(sae)
    wanted = by_saelens(theirs, mode, features)
    assert sae.layer == 1
    plain = tiny_model()
    assert (wanted - plain(IDS).logits).abs().max() > 1e-2
    with steer(plain, sae, features, mode=mode), torch.no_grad():
        assert (plain(IDS).logits - wanted).abs().max() < 1e-4
    bridge = wrapped("transformer_lens", "llama", tiny_tokenizer())
    with steer(bridge, sae, features, mode=mode), torch.no_grad():
        assert (bridge(IDS) - wanted).abs().max() < 1e-4
    traced = wrapped("nnsight", "llama", tiny_tokenizer())
    with steer(traced, sae, features, mode=mode), torch.no_grad(), traced.trace(IDS):
        found = traced.output.logits.save()
    assert (found - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_spliced_in_with_its_error_is_the_model(kind, tmp_path):
    theirs = written(kind, tmp_path)
    model, sae = tiny_model(), load_sae(tmp_path)
    with read_residuals(model, [1]) as plain, torch.no_grad():
        logits = model(IDS).logits
    with Splice(sae).on(model), read_residuals(model, [1]) as spliced, torch.no_grad():
        assert (model(IDS).logits - logits).abs().max() < 1e-4
    assert (spliced[1] - plain[1]).abs().max() < 1e-6 * max(1.0, float(plain[1].abs().max()))
    assert (by_saelens(theirs, None, {}) - logits).abs().max() < 1e-4
    with Splice(sae, error=False).on(model), torch.no_grad():
        assert (model(IDS).logits - logits).abs().max() > 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_saelens_own_object_steers_as_what_is_loaded_from_its_files(mode, tmp_path):
    theirs = written("topk", tmp_path)
    model, sae = tiny_model(), load_sae(tmp_path)
    features = chosen(sae)
    with steer(model, sae, features, mode=mode), torch.no_grad():
        wanted = model(IDS).logits
    with steer(model, theirs, features, mode=mode, layer=1), torch.no_grad():
        assert (model(IDS).logits - wanted).abs().max() < 1e-4
