"""The tokenizers and generators that the paper's authors released: their configuration and tensor names in ours.

They are in the hub organisation `SoftVQVAE`; MAETok's tokenizers share the format. A released tokenizer's folder is
`config.json`, all fields of their model class flat, and `model.safetensors`, which also holds the frozen alignment
teacher, the alignment projector and usage counters: none of them encodes or decodes.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from softvq import config as configs
from softvq.layers import VITS
from softvq.quantizers.base import MOST_CODEBOOKS
from softvq.quantizers.compose import ProductConfig
from softvq.quantizers.gaussian import AEConfig, KLConfig
from softvq.quantizers.hard import VQConfig
from softvq.quantizers.soft import SoftVQConfig


@dataclass(frozen=True)
class ReleasedTokenizer:
    """A released tokenizer's `config.json`, with the defaults of the class that wrote it.

    The exceptions are `enc_type` and `dec_type`, which the models' names settle. An unknown key is an error (but for
    `aux_…`, MAETok's decoders that only training has).
    """

    encoder_model: str
    decoder_model: str
    image_size: int
    num_latent_tokens: int
    codebook_embed_dim: int
    codebook_size: int = 16384
    num_codebooks: int = 1
    tau: float = 0.1
    codebook_l2_norm: bool = True
    enc_patch_size: int = 16
    dec_patch_size: int = 16
    vq_mean: float = 0.0
    vq_std: float = 1.0
    # Only some values of these are built here: see BUILT.
    enc_type: str = "vit"
    dec_type: str = "vit"
    to_pixel: str = "linear"
    enc_tuning_method: str = "full"
    dec_tuning_method: str = "full"
    use_ape: bool = True
    use_rope: bool = False
    dec_cls_token: bool = True
    # These matter in training only.
    base_image_size: int = 256
    codebook_show_usage: bool = True
    commit_loss_beta: float = 0.25
    entropy_loss_ratio: float = 0.0
    vq_loss_ratio: float = 1.0
    kl_loss_weight: float = 1e-6
    enc_pretrained: bool = True
    dec_pretrained: bool = False
    enc_drop_path_rate: float = 0.0
    dec_drop_path_rate: float = 0.0
    enc_token_drop: float = 0.0
    enc_token_drop_max: float = 0.6
    repa: bool = False
    repa_patch_size: int = 16
    repa_model: str = "vit_base_patch16_224"
    repa_proj_dim: int = 2048
    repa_loss_weight: float = 0.1
    repa_align: str = "global"
    # These belong to what is not built: convolutional models and rotary positions.
    encoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    dropout_p: float = 0.0
    rope_mixed: bool = False
    rope_theta: float = 10.0
    # And these describe the repository.
    tags: tuple[str, ...] = ()
    repo_url: str = ""
    license: str = ""


# Option -> the values that are built here, and what another value would ask for.
BUILT: dict[str, tuple[tuple[Any, ...], str]] = {
    "enc_type": (("vit",), "a convolutional encoder"),
    "dec_type": (("vit",), "a convolutional decoder"),
    "to_pixel": (("linear",), "another head than one linear layer"),
    "enc_tuning_method": (("full", "frozen"), "low-rank adapters"),
    "dec_tuning_method": (("full", "frozen"), "low-rank adapters"),
    "use_ape": ((True,), "positions that are not learned embeddings"),
    "use_rope": ((False,), "rotary positions inside the tokenizer"),
    "dec_cls_token": ((True,), "a decoder without class token"),
}

# Their tensor names -> ours, by beginning; the first that fits counts.
NAMES: dict[str, str] = {
    "encoder.model.": "encoder.vit.",
    "decoder.model.": "decoder.vit.",
    "decoder.to_pixel.model.": "decoder.to_pixel.",
    "quant_conv.": "to_quantizer.",
    "post_quant_conv.": "from_quantizer.",
    "quantize.embedding.weight": "quantizer.codebook",
}
UNUSED = (
    "repa_model.",  # the frozen teacher
    "projection.",  # the alignment projector
    "quantize.codebook_used",  # usage counters
    "encoder.mask_token",  # stands for dropped patches, in training
    "encoder.model.head.",  # a pretrained ViT's own head
    "decoder.model.head.",
    "decoder.model.patch_embed.",  # the decoder reads no patches
)


def tokenizer(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]] | None:
    """Return a released tokenizer as our `config`, `about` and tensors; None when `config` is of another format.

    The configuration does not tell SoftVQ, VQ, KL and AE apart: the tensors do. Raise `ConfigError` that names an
    option that is not built here.
    """
    if not {"encoder_model", "codebook_embed_dim"} <= config.keys():
        return None
    for option, (built, other) in BUILT.items():  # before unknown keys, which may belong to such an option
        if option in config and config[option] not in built:
            raise configs.ConfigError(f"config.json has {option} = {config[option]!r}: {other}, not built here.")
    known = {key: value for key, value in config.items() if not key.startswith("aux_")}
    theirs = configs.from_dict(ReleasedTokenizer, known, "config.json")
    if not (1e-30 < theirs.vq_std < 1e30 and abs(theirs.vq_mean) < 1e30):
        raise configs.ConfigError(
            f"config.json has vq_mean = {theirs.vq_mean} and vq_std = {theirs.vq_std}; the mean must be finite in "
            "float32, the deviation positive too."
        )
    if min(theirs.image_size, theirs.num_latent_tokens, theirs.codebook_embed_dim) < 1:
        raise configs.ConfigError(
            "config.json: image_size, num_latent_tokens and codebook_embed_dim must be at least 1."
        )
    if theirs.num_codebooks < 1 or theirs.num_latent_tokens % theirs.num_codebooks:
        raise configs.ConfigError(
            f"config.json has {theirs.num_latent_tokens} latent tokens, which cannot be split over its "
            f"{theirs.num_codebooks} codebooks."
        )
    D = theirs.codebook_embed_dim
    ours = {
        "image_size": theirs.image_size,
        "tokens": theirs.num_latent_tokens,
        "latent_dim": D,
        "encoder": _vit(theirs.encoder_model, theirs.enc_patch_size, "encoder_model"),
        "decoder": _vit(theirs.decoder_model, theirs.dec_patch_size, "decoder_model"),
        "quantizer": _quantizer(theirs, tensors),
    }
    renamed = {_our_name(name): tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}
    if "quantize.embedding" in renamed:  # as many as there are codebooks, which _quantizer has checked
        for g, codebook in enumerate(renamed.pop("quantize.embedding")):
            renamed[f"quantizer.inner.{g}.codebook"] = codebook
    renamed["latent_mean"] = torch.full((min(D, 65_536),), theirs.vq_mean)
    renamed["latent_std"] = torch.full((min(D, 65_536),), theirs.vq_std)
    about = {"source": theirs.repo_url or "a released checkpoint"}
    return ours, about | ({"license": theirs.license} if theirs.license else {}), renamed


def _vit(name: str, patch_size: int, option: str) -> dict[str, Any]:
    architecture = name.partition(".")[0]
    if architecture not in VITS or architecture.startswith(
        "eva02"
    ):  # EVA-02 ran there without rotations and final norm
        known = ", ".join(known for known in VITS if not known.startswith("eva02"))
        raise configs.ConfigError(f"config.json has {option} = {name!r}, which is not built here; built are {known}.")
    if patch_size < 1:
        raise configs.ConfigError(f"config.json has a patch size of {patch_size}; it must be at least 1.")
    return configs.to_dict(replace(VITS[architecture], patch_size=patch_size))


def _quantizer(theirs: ReleasedTokenizer, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if "quantize.embedding" in tensors:
        shape = tuple(tensors["quantize.embedding"].shape)
        if len(shape) != 3 or shape[0] != theirs.num_codebooks or shape[0] > MOST_CODEBOOKS:
            raise configs.ConfigError(
                f"quantize.embedding has shape {shape}, but config.json has {theirs.num_codebooks} codebooks of "
                f"{theirs.codebook_size} × {theirs.codebook_embed_dim}."
            )
        if not theirs.codebook_l2_norm:
            raise configs.ConfigError(
                "config.json has codebook_l2_norm = False: plain dot products are not built here."
            )
        try:
            soft = SoftVQConfig.released(theirs.codebook_size, theirs.tau)
        except ValueError as error:
            raise configs.ConfigError(f"config.json: {error}") from error
        return _tagged("Product", ProductConfig(soft, theirs.num_codebooks, axis="token", kl="pooled"))
    if "quantize.embedding.weight" in tensors:
        return _tagged("VQ", VQConfig(theirs.codebook_size, "cosine" if theirs.codebook_l2_norm else "euclidean"))
    bias = tensors.get("quant_conv.bias", torch.empty(0))
    is_kl = tuple(bias.shape) == (2 * theirs.codebook_embed_dim,)
    return _tagged("KL", KLConfig()) if is_kl else _tagged("AE", AEConfig())


def _tagged(name: str, config: Any) -> dict[str, Any]:
    return {"type": name, **configs.to_dict(config)}


def _our_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


@dataclass(frozen=True)
class ReleasedGenerator:
    """A released generator's `config.json`, with the defaults of the classes that wrote it; an unknown key is an error.

    The repositories are `SoftVQVAE/sit-xl_softvq-*` and `SoftVQVAE/dit-xl_softvq-*`.
    """

    hidden_size: int
    depth: int
    in_channels: int
    input_size: int
    num_heads: int = 16
    patch_size: int = 2
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    class_dropout_prob: float = 0.1
    vae_1d: bool = False
    qk_norm: bool = False
    # SiT's
    path_type: str = "edm"
    use_cfg: bool = False
    decoder_hidden_size: int = 768
    # DiT's
    learn_sigma: bool | None = None
    # How attention was computed, and what describes the repository.
    fused_attn: bool = True
    flash_attn: bool = False
    tags: tuple[str, ...] = ()
    repo_url: str = ""
    license: str = ""


def is_generator(config: dict[str, Any]) -> bool:
    """Return True when a configuration is that of a released SiT or DiT."""
    return {"hidden_size", "in_channels", "input_size"} <= config.keys()


def generator(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]] | None:
    """Return a released SiT or DiT as our `config`, `about` and tensors; None when `config` is of another format.

    `path_type: "edm"` in released SiTs is a class default that nothing used: it stands for the paper's cosine path.
    Raise `ConfigError` that names an option that is not built here.
    """
    if not is_generator(config):
        return None
    theirs = configs.from_dict(ReleasedGenerator, config, "config.json")
    patch = 1 if theirs.vae_1d else theirs.patch_size
    if theirs.qk_norm or theirs.class_dropout_prob <= 0 or theirs.learn_sigma is False:
        raise configs.ConfigError("config.json asks for qk_norm, no null class or a fixed variance: not built here.")
    if min(theirs.in_channels, theirs.input_size, patch) < 1 or theirs.input_size % patch:
        raise configs.ConfigError("config.json: input_size must be a multiple of patch_size, in_channels at least 1.")
    if theirs.path_type not in ("edm", "linear", "cosine"):
        raise configs.ConfigError(f"config.json has path_type = {theirs.path_type!r}; valid: linear, cosine.")
    network = {
        "tokens": theirs.input_size if theirs.vae_1d else (theirs.input_size // patch) ** 2,
        "channels": theirs.in_channels * patch**2,
        "classes": theirs.num_classes,
        "width": theirs.hidden_size,
        "depth": theirs.depth,
        "heads": theirs.num_heads,
        "mlp_ratio": theirs.mlp_ratio,
        "positions": "1d" if theirs.vae_1d else "2d",
    }
    shared = {"network": network, "dropout": theirs.class_dropout_prob}
    about: dict[str, Any] = {"source": "released by the paper's authors"}
    if theirs.learn_sigma is not None:
        ours = {"type": "DiT", "betas": "cosine", **shared}
    else:
        unset = theirs.path_type == "edm"
        ours = {"type": "SiT", "path": "cosine" if unset else theirs.path_type, **shared}
        if unset:
            about["path"] = "the configuration says edm, an unused class default; the paper's cosine path is used"
    named = {name.replace("x_embedder.proj.", "x_embedder."): _folded(name, t, theirs) for name, t in tensors.items()}
    return ours, about, {f"network.{name}": tensor for name, tensor in named.items()}


def _folded(name: str, tensor: Tensor, theirs: ReleasedGenerator) -> Tensor:
    """Return a tensor that meets the squares of 2-D latents with its numbers in our order: by place, then channel.

    DiT's noise comes before its variance. Other tensors, and those of a wrong shape, stay as they are.
    """
    if theirs.vae_1d:
        return tensor
    if name == "x_embedder.proj.weight" and tensor.ndim == 4:
        return tensor.permute(0, 2, 3, 1).flatten(1)
    rows = theirs.patch_size**2 * 2 * theirs.in_channels
    if name.startswith("final_layer.linear.") and theirs.learn_sigma is not None and tensor.shape[:1] == (rows,):
        parts = tensor.unflatten(0, (theirs.patch_size**2, 2, theirs.in_channels))
        return parts.transpose(0, 1).flatten(0, 2)
    return tensor
