"""Training dictionaries: what is refused, what comes out, going on bit for bit, and SAELens."""

import json

import pytest
import torch
from records import random_record
from wrapped import needs

from entropy_probe.rollout import Rollouts
from entropy_probe.storage.errors import RunConflict
from sae_steering import load_sae, train_sae
from sae_steering.dictionary import PlainDictionary
from sae_steering.train import Training

SMALL = {"d_sae": 24, "k": 3, "samples": 4000, "batch_size": 50, "rate": 5e-3}


def sparse_states(count, width=12, directions=16, active=2, seed=0):
    """Give states that are sums of two of a few directions, far from zero."""
    noise = torch.Generator().manual_seed(seed)
    basis = torch.nn.functional.normalize(torch.randn(directions, width, generator=noise), dim=1)
    which = torch.rand(count, directions, generator=noise).topk(active).indices
    strengths = 1 + torch.rand(count, active, generator=noise)
    return (basis[which] * strengths[..., None]).sum(dim=1) * 5 + 30, basis


def record_of(states) -> Rollouts:
    """Give a record whose captured states of layer 1 are these."""
    record = random_record(40, layers={}, longest=60)
    places = record.captured.nonzero()[: len(states)]
    captured = torch.zeros_like(record.captured)
    captured[places[:, 0], places[:, 1]] = True
    assert len(places) == len(states), "the record is too short"
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    return Rollouts(**fields | {
        "captured": captured, "controls": torch.zeros_like(captured), "residuals": {1: states},
    })  # fmt: skip


@pytest.fixture(scope="module")
def record():
    return record_of(sparse_states(400)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gated"}, "architecture must be one of"),
        ({"d_sae": 0}, "d_sae must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"k": 0}, "k must be 1 to d_sae=512"),
        ({"k": 600}, "k must be 1 to d_sae=512"),
        ({"k": 2.5}, "whole for topk"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"l1": -1.0}, "l1 at least 0"),
        ({"samples": 10}, "less than a batch"),
    ],
)
def test_trainings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Training(**options)
    assert Training(architecture="batchtopk", k=2.5).steps == 488


def test_a_folder_with_something_else_is_left_alone(record, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(RunConflict, match=r"there is no training\.json in it"):
        train_sae(record, tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


@pytest.fixture(scope="module")
def lens():
    return needs("sae_lens")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk"])
def test_planted_directions_are_found_and_saelens_reads_the_same(
    lens, record, tmp_path, architecture
):
    options = SMALL | {"samples": 120_000, "architecture": architecture, "l1": 0.05}
    sae = train_sae(record, tmp_path / "sae", **options)
    states, basis = sparse_states(400)
    assert (sae.layer, sae.d_sae, sae.d_model) == (1, 24, 12)
    assert sae.architecture == {"batchtopk": "jumprelu"}.get(architecture, architecture)
    assert isinstance(sae.body, PlainDictionary)
    theirs = lens.SAE.load_from_disk(tmp_path / "sae")
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(states), theirs.encode(states))
        torch.testing.assert_close(sae.reconstruct(states), theirs(states))
    error = (sae.reconstruct(states) - states).square().sum()
    assert float(error / (states - states.mean(0)).square().sum()) < 0.1
    found, chance = (
        float((torch.nn.functional.normalize(w, dim=1) @ basis.T).amax(dim=0).gt(0.9).sum())
        for w in (sae.W_dec, torch.randn(24, 12, generator=torch.Generator().manual_seed(9)))
    )
    assert found >= 5  # of 16
    assert chance <= 1
    assert abs(sae.scale - 12**0.5 / float(states.norm(dim=1).mean())) < 0.01 * sae.scale
    assert (sae.model, sae.weights) == (record.provenance.model, record.provenance.weights)
    assert sae.about["hook_name"] == "blocks.1.hook_resid_post"
    assert {p.name for p in (tmp_path / "sae").iterdir()} == {
        "cfg.json", "sae_weights.safetensors", "training.json",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk"])
def test_an_interrupted_training_goes_on_bit_for_bit(lens, record, tmp_path, architecture):
    options = SMALL | {"architecture": architecture, "checkpoint_every": 25}

    def stop(done, total, told):
        assert total == 4000
        if done >= 3000:
            raise KeyboardInterrupt

    whole = train_sae(record, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train_sae(record, tmp_path / "cut", progress=stop, **options)
    (kept,) = (tmp_path / "cut/checkpoints").iterdir()
    assert kept.name == "step-000000050"
    (tmp_path / "cut/checkpoints/.writing").mkdir()  # a kill while a checkpoint was written
    seen = []
    again = train_sae(
        record, tmp_path / "cut", resume=True, progress=lambda *a: seen.append(a[0]), **options
    )
    assert seen == [3000, 4000]
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        one, two = getattr(whole.body, name), getattr(again.body, name)
        assert (one is None and two is None) or torch.equal(one, two)
    files = [(tmp_path / n / "cfg.json").read_text() for n in ("whole", "cut")]
    assert files[0] == files[1]
    done = train_sae(record, tmp_path / "cut", resume=True, progress=None, **options)
    assert torch.equal(done.W_dec, again.W_dec)
    with pytest.raises(RunConflict, match="holds a training already"):
        train_sae(record, tmp_path / "cut", **options)
    with pytest.raises(RunConflict, match="its training differ from what is asked for"):
        train_sae(record, tmp_path / "cut", resume=True, **options | {"seed": 1})


@pytest.mark.slow
def test_the_seed_decides_everything(lens, record, tmp_path):
    torch.manual_seed(5)
    one = train_sae(record, tmp_path / "a", **SMALL)
    torch.manual_seed(6)
    assert torch.equal(train_sae(record, tmp_path / "b", **SMALL).W_dec, one.W_dec)
    assert not torch.equal(train_sae(record, tmp_path / "c", seed=1, **SMALL).W_dec, one.W_dec)
    plan = json.loads((tmp_path / "a/training.json").read_text())
    assert (plan["layer"], plan["states"], plan["d_model"]) == (1, {"all": 400}, 12)


@pytest.mark.slow
def test_unscaled_states_are_trained_on_as_they_are(lens, record, tmp_path):
    sae = train_sae(record, tmp_path / "a", scaled=False, **SMALL)
    assert sae.scale == 1.0
    assert sae.normalisation == "none"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["standard", "topk", "batchtopk", "matryoshka_batchtopk", "gated", "jumprelu"]
)
def test_we_read_what_saelens_writes(lens, tmp_path, kind):
    from sae_lens.registry import get_sae_training_class

    body, config = get_sae_training_class(kind)
    options = {"d_in": 12, "d_sae": 24}
    options |= {"k": 3} if "topk" in kind else {}
    options |= {"matryoshka_widths": [8, 24]} if kind.startswith("mat") else {}
    theirs = body(config(**options))
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.cfg.metadata.hook_name = "blocks.4.hook_resid_post"
    theirs.save_inference_model(tmp_path)
    ours, again = load_sae(tmp_path), lens.SAE.load_from_disk(tmp_path)
    states = torch.randn(20, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(states), again.encode(states))
        torch.testing.assert_close(ours.reconstruct(states), again(states))
    assert float(ours.encode(states).abs().sum()) > 0
    assert ours.layer == 4
    assert ours.architecture == ("jumprelu" if "batch" in kind else kind)
    assert isinstance(ours.body, PlainDictionary) == (kind != "gated")


@pytest.mark.slow
def test_a_checkpoint_whose_scale_is_not_folded_in_is_refused(lens, tmp_path):
    from entropy_probe.models import LoadError

    config = lens.TopKTrainingSAEConfig(
        d_in=12, d_sae=24, k=3, normalize_activations="expected_average_only_in"
    )
    lens.TrainingSAE.from_dict(config.to_dict()).save_inference_model(tmp_path)
    with pytest.raises(LoadError, match="was not folded into its weights"):
        load_sae(tmp_path)


@pytest.mark.slow
def test_states_of_other_weights_are_not_mixed(record):
    from dataclasses import replace

    from sae_steering.store import StateStore

    provenance = replace(record.provenance, weights="other")
    with pytest.raises(ValueError, match="of different weights"):
        StateStore([record, replace(record, provenance=provenance)])
