"""Chunks on a real Ray cluster of two nodes, one of which is killed while it computes."""

import os
import re

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from entropy_probe.computing import run_chunk
from entropy_probe.filling import carry_out_on_ray
from entropy_probe.models import LoadError, load
from entropy_probe.planning import plan_samples
from entropy_probe.ray_pool import RayPool, _room
from entropy_probe.storage.errors import RunConflict, RunError

pytestmark = pytest.mark.slow

ARGUMENTS = {
    "n": 2, "max_new_tokens": 24, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
    "residual_layers": [1], "residual_positions": "forks", "alternatives": 3, "seed": 3,
    "batch_size": 8, "stop": [], "fraction": 0.2,
}  # fmt: skip
PROMPTS = [f"w{i} w{i + 1} " for i in range(40)]


@pytest.fixture(autouse=True)
def ray():
    if os.environ.get("PROBE_REQUIRE_RAY") != "1":
        pytest.importorskip("ray", reason="the ray extra is not installed")
    import ray

    yield ray
    ray.shutdown()


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def assert_equal(one, other):
    for name in ("tokens", "valid", "entropy", "logprobs", "ranks", "captured", "controls"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.alternatives.logprobs, other.alternatives.logprobs)
    assert torch.equal(one.residuals[1], other.residuals[1])


def test_a_killed_node_loses_nothing_and_changes_no_bit(folder, ray):
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        model, tokenizer = load(folder)
        found = {}
        with RayPool("auto", {"reference": str(folder)}, threads=1) as pool:
            plan = pool.call("plan_samples", PROMPTS, ARGUMENTS, {"chunk_prompts": 2})
            assert pool.actors == 2
            pool.start()
            for index, rows in pool.chunks(plan, range(plan.chunks)):
                found[index] = rows
                if len(found) == plan.chunks // 2:
                    cluster.remove_node(second, allow_graceful=False)
            assert pool.deaths >= 1
        assert sorted(found) == list(range(20))
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        for index, rows in found.items():
            assert_equal(rows, run_chunk(model, tokenizer, plan, index))
        torch.set_num_threads(before)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_errors_of_the_library_come_back_as_they_are(folder):
    with RayPool("local", {"reference": str(folder)}, threads=1, actors=1) as pool:
        with pytest.raises(ValueError, match="layer 9 is out of range"):
            pool.call("plan_samples", PROMPTS, ARGUMENTS | {"residual_layers": [9]}, {})
    with RayPool("local", {"reference": str(folder / "gone")}, threads=1, actors=1) as pool:
        with pytest.raises(LoadError) as caught:
            pool.call("describe")
    assert caught.value.fix


def test_a_machine_whose_model_is_another_one_computes_nothing(folder):
    """Each machine reads a folder of its own, whatever another one's of that name holds."""
    plan = plan_samples(tiny_model(seed=1), tiny_tokenizer(), PROMPTS, ARGUMENTS, chunk_prompts=2)
    with RayPool("local", {"reference": str(folder)}, threads=1, actors=1) as pool:
        with pytest.raises(RunConflict, match="not the one that the run was planned with"):
            next(pool.chunks(plan, range(plan.chunks)))
        with pytest.raises(RunConflict, match="not the one that the run was planned with"):
            carry_out_on_ray(pool, plan, folder.parent / "run", resume=True)
    assert not (folder.parent / "run").exists()


def test_a_model_that_no_machine_has_the_cores_for_is_refused_not_waited_for(folder, ray):
    with pytest.raises(RunError, match="it takes 4096 cores") as caught:
        RayPool("local", {"reference": str(folder)}, threads=4096)
    assert re.search(r"machine are [1-9]\d*$", caught.value.why)
    assert "OMP_NUM_THREADS" in caught.value.fix
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("machines", "threads", "room"),
    [
        ([{"CPU": 8.0}], 3, 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}, {}], 2, 2),
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 4.0}], 2, 4),
        ([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 4.0}], 4, 2),
    ],
)
def test_room_is_counted_by_machine(machines, threads, room):
    gpus = int(any("GPU" in machine for machine in machines))
    assert _room(machines, threads, gpus) == room


def test_cores_of_machines_without_a_gpu_do_not_count_where_one_is_taken():
    with pytest.raises(RunError, match="16 cores and a GPU") as caught:
        _room([{"CPU": 64.0}, {"CPU": 8.0, "GPU": 4.0}], 16, 1)
    assert "machine with a GPU are 8" in caught.value.why


def test_no_cluster_there_says_how_to_start_one():
    with pytest.raises(RunError, match="ray start --head"):
        RayPool("127.0.0.1:1", {"reference": "nothing"}, threads=1)


def test_local_never_joins_a_cluster_that_runs_here_already(folder, ray):
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False}
    )
    try:
        with RayPool("local", {"reference": str(folder)}, threads=1, actors=1) as pool:
            assert ray.get_runtime_context().gcs_address != cluster.address
            assert pool.call("depth") == len(tiny_model().model.layers)
    finally:
        ray.shutdown()
        cluster.shutdown()
