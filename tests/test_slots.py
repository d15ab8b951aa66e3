import torch
from tiny import CONFIGS, tiny_model
from transformers.cache_utils import DynamicCache

from entropy_probe.kvcache import Columns, make_cache
from entropy_probe.slots import Prefilled, Slots


def prefilled(cache=None) -> Prefilled:
    """Build three prompts of 4, 2 and 3 tokens, the rows 10 to 15 of a record, two a prompt."""
    cache = make_cache(tiny_model()) if cache is None else cache
    mask, states = Columns(), Columns()
    mask.append(torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])[..., None])
    states.append(torch.arange(3.0)[:, None, None].expand(3, 1, 2))
    keys = torch.arange(3.0)[:, None, None, None].expand(3, 2, 4, 8)
    for layer in range(3):
        cache.update(keys, -keys, layer)
    return Prefilled(
        waiting=range(11, 16),
        first=10,
        n=2,
        limits=torch.tensor([5, 6, 7]),
        starts=torch.tensor([4, 2, 3]),
        logits=torch.eye(3),
        mask=mask,
        cache=cache,
        held={1: states},
    )


def prompts_of(slots: Slots) -> list[int]:
    """Give the number of the prompt in each slot, after checking that all state agrees."""
    found = (slots.rows - 10) // 2
    assert torch.equal(slots.starts, torch.tensor([4, 2, 3])[found])
    assert torch.equal(slots.limit, torch.tensor([5, 6, 7])[found])
    assert torch.equal(slots.held[1].view()[:, -1, 0], found.float())
    mask = slots.mask.view()[..., 0]
    assert torch.equal(mask.sum(1), slots.starts)
    assert torch.equal(mask, mask.cummax(dim=1).values)  # aligned on the right
    return found.tolist()


def test_rows_begin_with_their_prompts_and_slots_are_taken_over():
    waiting = prefilled()
    slots = Slots.empty(waiting)
    assert slots.open
    assert slots.join(waiting, 3) == 3
    assert slots.rows.tolist() == [11, 12, 13]
    assert prompts_of(slots) == [0, 1, 1]
    assert torch.equal(slots.logits, torch.eye(3)[[0, 1, 1]])
    slots.tails = [b"a", b"b", b"c"]
    slots.alive[1] = False
    assert slots.join(waiting, 5) == 2
    assert slots.rows.tolist() == [11, 14, 13, 15]
    assert prompts_of(slots) == [0, 2, 1, 2]
    assert slots.tails == [b"a", b"", b"c", b""]
    assert slots.alive.all()
    assert slots.join(waiting, 5) == 0
    slots.alive[:2] = False
    slots.made += torch.tensor([9, 9, 0, 0])
    assert slots.leave().tolist() == [2, 3]
    assert prompts_of(slots) == [1, 2]
    assert slots.mask.length == 3  # the longest row left, its prompt's 3 tokens
    keys, values = slots.cache.update(torch.ones(2, 2, 1, 8), torch.ones(2, 2, 1, 8), 2)
    assert keys[:, 0, -2, 0].tolist() == [1.0, 2.0]
    assert values[:, 1, -2, 7].tolist() == [-1.0, -2.0]


def test_a_cache_that_is_not_roomy_begins_anew():
    waiting = prefilled(DynamicCache(config=CONFIGS["llama"]))
    slots = Slots.empty(waiting)
    assert not slots.open
    slots.join(waiting, 2)
    slots.alive[0] = False
    assert slots.leave().tolist() == [1]
    assert slots.cache.layers[0].keys[:, 0, 0, 0].tolist() == [1.0]
    slots.alive[:] = False
    slots.join(waiting, 2)
    assert slots.rows.tolist() == [13, 14]
    assert slots.cache.layers[2].keys[:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert waiting.cache.layers[0].keys.shape[0] == 3  # what waits is not used up
