"""Two processes (gloo) with half the batch each see the expectation, and give the gradient, of the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from softvq import distributed
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import SoftVQConfig

CONFIGS = {
    "eq4": SoftVQConfig(6),
    "released": ProductConfig(SoftVQConfig.released(6), 2, "token", "pooled"),
    "vq": VQConfig(6),
}


def answer(name: str, rows: slice) -> dict[str, torch.Tensor]:
    """KL term, statistics and the codebooks' gradient on these rows of the batch."""
    torch.manual_seed(0)
    quantizer = CONFIGS[name].build(3).double()
    z = torch.randn(4, 4, 3, dtype=torch.float64)
    result = quantizer(z[rows], None, distributed.mean)
    (sum(result.losses.values()) + result.latent.square().mean()).backward()
    gradient = torch.cat([p.grad.flatten() for p in quantizer.parameters()])
    kl = {"kl": result.losses["kl"].detach()} if "kl" in result.losses else {}
    return {"gradient": distributed.mean(gradient), **result.statistics, **kl}


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    answers = {name: answer(name, slice(2 * rank, 2 * rank + 2)) for name in CONFIGS}
    torch.save(answers, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_equal_one(ranks, name: str):
    whole = answer(name, slice(None))
    for rank in ranks:
        assert rank[name].keys() == whole.keys()
        for key, value in whole.items():
            assert torch.allclose(rank[name][key].double(), value.double(), atol=1e-6 if name == "vq" else 1e-12), key


def test_alone_nothing_is_reduced():
    x = torch.arange(3.0)
    assert distributed.rank() == 0
    assert distributed.world_size() == 1
    assert distributed.mean(x) is x
    assert distributed.maximum(x) is x
    assert distributed.total(x) is x
