"""What a row of tokenizers or generators costs: counts are the paper's and those of layers written out; times, memory
and images a second are those of the calls that an image takes."""

import sys
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from softvq.evaluation import cost
from softvq.generators.base import Generator
from softvq.generators.mar import MAR, Head, MARConfig, MARNetworkConfig
from softvq.generators.transformer import Transformer
from softvq.tokenizer import Tokenizer, TokenizerConfig

PAPERS = {  # Gflops of Table 1, and how near a count is
    "dit-xl-32": (14.52, 0.01),
    "dit-xl-64": (28.81, 0.01),
    "sit-xl-32": (14.73, 0.02),
    "sit-xl-64": (29.23, 0.02),
    "mar-h-32": (67.93, 0.01),
    "mar-h-64": (86.55, 0.02),
}
KL = {"dit-xl-2-kl": 256, "sit-xl-2-kl": 256, "dit-xl-2-kl-512": 1024, "sit-xl-2-kl-512": 1024}  # tokens
TOKENIZERS = {  # size, image size, millions of parameters (Section 4.1), depth and width of the decoder
    "softvq-s-64": ("S", 256, 45, 12, 384),
    "softvq-b-64": ("B", 256, 173, 12, 768),
    "softvq-bl-64": ("BL", 256, 391, 24, 1024),
    "softvq-l-64": ("L", 256, 608, 24, 1024),
    "softvq-bl-64-512": ("BL", 512, 392, 24, 1024),
}


def measured(*rows: str, **settings: Any) -> dict[str, Any]:
    return cost.cost(rows, device="cpu", **settings).to_dict()


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    """Rows in their full size, where diffusers is not installed, and what all of them were counted on."""
    contents = []

    def macs(model, call):
        contents.extend(not isinstance(p, FakeTensor) for p in model.parameters())
        return counting(model, call)

    counting = cost.macs
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "diffusers", None)
        patch.setattr(cost, "macs", macs)
        result = measured(*PAPERS, *KL, *TOKENIZERS, "kl-f8", timed=False)
    return {**result, "contents": contents}


@pytest.mark.parametrize("name", PAPERS)
def test_counts_are_the_papers(counted, name: str):
    row, (published, near) = counted["rows"][name], PAPERS[name]
    assert row["published_gmacs"] == published
    assert row["gmacs"] == pytest.approx(published, rel=near)


@pytest.mark.parametrize("name", [*PAPERS, *KL])
def test_layers_add_up(counted, name: str):
    row = counted["rows"][name]
    assert len(row["by_layer"]) > 5
    assert sum(row["by_layer"].values()) == pytest.approx(row["gmacs"], rel=1e-9)


@pytest.mark.parametrize("name", [name for name in (*PAPERS, *KL) if "xl" in name])
def test_a_denoisers_blocks_are_28_of_width_1152(counted, name: str):
    """Queries, keys, values and their projection, and twice the fourfold width, a token; 675 million parameters."""
    layers, tokens = counted["rows"][name]["by_layer"], KL.get(name) or int(name.split("-")[-1])
    square = 28 * 1152**2 / 1e9
    assert layers["network.blocks.attn.qkv"] == pytest.approx(3 * tokens * square)
    assert layers["network.blocks.attn.proj"] == pytest.approx(tokens * square)
    assert layers["network.blocks.mlp.fc1"] + layers["network.blocks.mlp.fc2"] == pytest.approx(8 * tokens * square)
    assert layers["network.blocks.adaLN_modulation"] == pytest.approx(6 * square)  # once an image
    assert counted["rows"][name]["parameters"] == pytest.approx(675, abs=0.5)


@pytest.mark.parametrize("tokens", [32, 64])
def test_a_mars_encoder_sees_its_buffer_its_decoder_all_and_its_head_each_token(counted, tokens: int):
    layers, square = counted["rows"][f"mar-h-{tokens}"]["by_layer"], 20 * 1280**2 / 1e9
    for half, seen in (("encoder", 64), ("decoder", 64 + tokens)):
        found = [layers[f"{half}.{part}"] for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
        assert found == pytest.approx([times * seen * square for times in (3, 1, 4, 4)])
    assert layers["head.layers.mlp"] == pytest.approx(2 * 12 * tokens * 1536**2 / 1e9)


def test_four_times_the_tokens_cost_four_times_as_much(counted):
    rows = counted["rows"]
    for kind in ("dit", "sit"):
        few, many = rows[f"{kind}-xl-2-kl"]["gmacs"], rows[f"{kind}-xl-2-kl-512"]["gmacs"]
        assert many == pytest.approx(4 * few, rel=0.01)
        assert few == pytest.approx(4 * rows[f"{kind}-xl-64"]["gmacs"], rel=0.01)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizers_figures_are_those_of_its_networks(counted, name: str):
    size, pixels, millions, depth, width = TOKENIZERS[name]
    row = counted["rows"][name]
    with torch.device("meta"):
        model = Tokenizer(TokenizerConfig.of_size(size, tokens=64, latent_dim=32, image_size=pixels))
    assert row["parameters"] == sum(p.numel() for p in model.parameters()) / 1e6
    assert row["parameters"] == pytest.approx(millions, abs=0.6)
    patches = (pixels // 16) ** 2  # and 64 tokens, through blocks of twelve squares; the rest is pixels
    assert row["decode_gmacs"] == pytest.approx(depth * 12 * width**2 * (patches + 64) / 1e9, rel=0.03)


def test_a_generators_images_are_decoded_by_its_tokenizer(counted):
    rows = counted["rows"]
    assert rows["sit-xl-64"]["decode_gmacs"] == rows["softvq-l-64"]["decode_gmacs"]
    assert rows["mar-h-64"]["decode_gmacs"] == rows["softvq-bl-64"]["decode_gmacs"]
    assert rows["dit-xl-32"]["decode_gmacs"] < rows["dit-xl-64"]["decode_gmacs"]


def test_full_size_takes_no_memory(counted):
    """Every parameter of every network that was counted is without contents."""
    assert len(counted["contents"]) > 1000
    assert not any(counted["contents"])


def test_without_diffusers_decoding_is_left_out_and_all_else_is_there(counted):
    for name in KL:
        assert counted["rows"][name]["decode_gmacs"] is None
        assert counted["rows"][name]["gmacs"] > 100
    alone = counted["rows"]["kl-f8"]
    assert alone["decode_gmacs"] is None
    assert "parameters" not in alone


def test_counting_times_nothing(counted):
    assert counted["protocol"]["timed"] is False
    kept = {"parameters", "gmacs", "by_layer", "decode_gmacs", "decode_ms"}
    told = {"table", "about", "published_gmacs", "published_images_per_second"}
    assert {key for row in counted["rows"].values() for key in row} == kept | told
    assert all(row["decode_ms"] is None for row in counted["rows"].values())


def test_of_diffusers_kl_autoencoder():
    """83.65 million parameters, as latent diffusion's; a convolution's cost grows with the pixels."""
    pytest.importorskip("diffusers")
    row = measured("kl-f8", timed=False)["rows"]["kl-f8"]
    assert row["parameters"] == 83.653863
    assert row["decode_gmacs"] > row["gmacs"] > 100  # its decoder has a block more a level


@pytest.fixture(scope="module")
def mar(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny one for the bundled tokenizer's latents."""
    folder = tmp_path_factory.mktemp("models") / "mar"
    network = MARNetworkConfig.named("tiny", 64, 16, 9)
    MARConfig(network, head_steps=7).build({"tokenizer": {"name": "softvq-emoji-64"}}).save_pretrained(folder)
    return str(folder)


def test_models_are_timed(mar: str):
    names = ["emoji-sit", "softvq-emoji-64", mar]
    result = measured(models=names, batch_size=1, repeats=1, steps=20)
    assert list(result["rows"]) == names
    sit, tokenizer, tiny = result["rows"].values()
    for row, model in ((sit, Generator.from_pretrained("emoji-sit")), (tiny, Generator.from_pretrained(mar))):
        weights = 4 * sum(p.numel() for p in model.parameters())
        assert row["parameters"] * 4e6 == weights
        assert weights < row["memory_gb"] * 1e9 < 2 * weights + 4e6
    assert min(sit["evaluation_ms"], sit["decode_ms"], tiny["head_ms"], tokenizer["evaluation_ms"]) > 0
    took = 20 * sit["evaluation_ms"] + sit["decode_ms"]
    assert sit["images_per_second"] == pytest.approx(1000 / took)
    took = 20 * (tiny["evaluation_ms"] + 7 * tiny["head_ms"]) + tiny["decode_ms"]
    assert tiny["images_per_second"] == pytest.approx(1000 / took)
    took = tokenizer["evaluation_ms"] + tokenizer["decode_ms"]
    assert tokenizer["images_per_second"] == pytest.approx(1000 / took)
    held = Tokenizer.from_pretrained("softvq-emoji-64")
    assert tokenizer["memory_gb"] * 1e9 > 4 * sum(p.numel() for p in held.parameters())
    assert result["protocol"].items() >= {"batch": 1, "repeats": 1, "steps": 20, "timed": True}.items()


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Every call takes two seconds, and every network 3 GB; gives the types that matrix products were made in."""
    seen = []

    def timed(call, device, repeats):
        call()
        seen.append((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        return 2.0

    def call_memory(model, call):
        timed(call, None, 1)
        return 3_000_000_000 if list(model.parameters()) else 0

    monkeypatch.setattr(cost, "timed", timed)
    monkeypatch.setattr(cost, "call_memory", call_memory)
    return seen


def test_images_a_second_are_those_of_the_batch(two_seconds, mar: str):
    """Steps of two seconds, then two of decoding, four images at once. A MAR of 64 tokens takes 64 steps at most, each
    with seven of its head."""
    names = ("emoji-sit", mar, "softvq-emoji-64")
    sit, tiny, tokenizer = measured(models=names, batch_size=4, steps=100)["rows"].values()
    assert sit["images_per_second"] == pytest.approx(4 / (100 * 2 + 2))
    assert tiny["images_per_second"] == pytest.approx(4 / (64 * (2 + 7 * 2) + 2))
    assert tokenizer["images_per_second"] == pytest.approx(4 / (2 + 2))
    figures = [row[key] for row in (sit, tiny, tokenizer) for key in ("evaluation_ms", "decode_ms")]
    assert [*figures, tiny["head_ms"]] == pytest.approx([500] * 7)  # an image
    assert sit["memory_gb"] == tiny["memory_gb"] == tokenizer["memory_gb"] == 3.0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_time_and_memory_are_measured_in_the_precision(two_seconds, precision: str):
    result = measured(models=("emoji-sit", "softvq-emoji-64"), precision=precision, batch_size=1)
    assert result["protocol"]["precision"] == precision
    assert two_seconds == [getattr(torch, precision)] * 6  # evaluation, decoding and memory of either


@pytest.mark.parametrize(("guidance", "rows"), [(1, 3), (1.75, 6)])
def test_guidance_doubles_the_batch_but_not_what_is_decoded(two_seconds, monkeypatch, guidance: float, rows: int):
    seen, decoded, forward, decode = [], [], Transformer.forward, Tokenizer.decode

    def spied(self, x, t, labels):
        seen.append((isinstance(x, FakeTensor), len(x), len(t), len(labels)))
        return forward(self, x, t, labels)

    def spied_decode(self, latents):
        decoded.append((isinstance(latents, FakeTensor), len(latents)))
        return decode(self, latents)

    monkeypatch.setattr(Transformer, "forward", spied)
    monkeypatch.setattr(Tokenizer, "decode", spied_decode)
    result = measured(models=["emoji-sit"], batch_size=3, steps=2, guidance=guidance)
    assert set(seen) == {(True, 1, 1, 1), (False, rows, rows, rows)}  # counted of one, timed of all
    assert set(decoded) == {(True, 1), (False, 3)}
    assert result["rows"]["emoji-sit"]["images_per_second"] == pytest.approx(3 / (2 * 2 + 2))


@pytest.mark.parametrize(("guidance", "rows"), [(1, 3), (2, 6)])
def test_a_mars_step_hides_the_mean_and_its_head_makes_a_steps_share(
    two_seconds, monkeypatch, mar: str, guidance: float, rows: int
):
    """In eight steps of the cosine 64, 62, 59, 53, 45, 35, 24 and 12 of 64 tokens are hidden: 44.25 in the mean."""
    hidden, made, places, forward = [], [], MAR.places, Head.forward

    def spied(self, latents, visible, labels):
        hidden.append([64 - len(set(row.tolist())) for row in visible])
        return places(self, latents, visible, labels)

    def spied_head(self, x, t, z):
        made.append((isinstance(x, FakeTensor), len(x), len(t), len(z)))
        return forward(self, x, t, z)

    monkeypatch.setattr(MAR, "places", spied)
    monkeypatch.setattr(Head, "forward", spied_head)
    measured(models=[mar], batch_size=3, steps=8, guidance=guidance)
    assert hidden == [[44] * rows] * 2  # timed, and its memory counted
    assert set(made) == {(True, 64, 64, 64), (False, rows * 8, rows * 8, rows * 8)}
