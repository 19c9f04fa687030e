"""The starts of a fresh tokenizer's weights before training: as a pretrained ViT, as another tokenizer, or local."""

import math
from dataclasses import fields

import torch
from torch import Tensor, nn

from softvq.layers import Attention, VisionTransformer, ViTConfig, resample_positions
from softvq.tokenizer import Tokenizer


def encoder_start(tokenizer: Tokenizer, vit: VisionTransformer) -> None:
    """Start the encoder as a pretrained ViT (Section 4.1); latent tokens, the decoder and all else stay as they are.

    Raise `ValueError` when the encoder has another architecture.
    """
    check_encoder(tokenizer.config.encoder, vit.config, "the pretrained ViT")
    tokenizer.encoder.vit.load_state_dict(vit.state_dict())


@torch.no_grad()
def model_start(tokenizer: Tokenizer, other: Tokenizer) -> None:
    """Start as another tokenizer, to fine-tune it.

    Positions are resampled to this one's image size, latent tokens to its number of tokens; a refinement that the other
    does not have starts as the identity. All else must have the same shapes; raise `ValueError` that names the first
    tensor that does not.
    """
    for side in ("encoder", "decoder"):
        mine, theirs = (getattr(t.config, side).heads for t in (tokenizer, other))
        if mine != theirs:  # weights of the same shapes, but another function
            raise ValueError(f"the tokenizer to start from has {theirs} heads in its {side}, this recipe's has {mine}")
    own, given = tokenizer.state_dict(), other.state_dict()
    for name in own.keys() & given.keys():
        if name.endswith("vit.pos_embed"):
            old, new = (getattr(t, name.split(".")[0]).vit.grid for t in (other, tokenizer))
            given[name] = resample_positions(given[name], old, new)
        elif name.endswith(("latent_tokens", "latent_pos_embed")) and given[name].shape[1] != own[name].shape[1]:
            # Interpolated, not repeated: two equal tokens would stay equal for ever.
            tokens = nn.functional.interpolate(given[name].transpose(1, 2), size=own[name].shape[1], mode="linear")
            given[name] = tokens.transpose(1, 2)
    if tokenizer.config.refine and not other.config.refine:
        given |= {name: tensor for name, tensor in own.items() if name.startswith("decoder.refine.")}
    if differing := sorted(own.keys() ^ given.keys()):
        raise ValueError(f"the tokenizer to start from is another model: {differing[0]} is not in both")
    for name, target in own.items():
        if given[name].shape != target.shape:
            raise ValueError(
                f"the tokenizer to start from has {name} of shape {tuple(given[name].shape)}, "
                f"this recipe's has {tuple(target.shape)}"
            )
        target.copy_(given[name])


def check_encoder(encoder: ViTConfig, pretrained: ViTConfig, name: str) -> None:
    """Raise `ValueError` that names the differing fields when an encoder cannot start as a pretrained ViT."""
    pairs = {field.name: (getattr(encoder, field.name), getattr(pretrained, field.name)) for field in fields(ViTConfig)}
    if differing := [f"{field} {a} instead of {b}" for field, (a, b) in pairs.items() if a != b]:
        raise ValueError(f"the encoder cannot start as {name}: it has {', '.join(differing)}")


@torch.no_grad()
def local_start(tokenizer: Tokenizer) -> None:
    """Start every attention layer at its token's own place: an optional replacement of the usual ViT start.

    A 1-D tokenizer learns slowly at first because the latent tokens do not yet know which patches to read. Here the
    latents are laid out on a grid over the image and get the same kind of 2-D sine positions as the patches; query and
    key projections start equal (orthonormal), so a token attends to those nearby, and value and output projections
    start as inverses of each other, so it copies what it finds (the idea of mimetic initialisation, Trockman and Kolter
    2023). Everything stays learnable and the model is unchanged. Raise `ValueError` for EVA-02's blocks.
    """
    if "eva02" in (tokenizer.config.encoder.block, tokenizer.config.decoder.block):
        raise ValueError("init 'local' is for blocks of type 'vit', not 'eva02'")
    for side in (tokenizer.encoder, tokenizer.decoder):
        width = side.vit.pos_embed.shape[-1]
        side.vit.pos_embed[:, 1:] = sine_positions(side.vit.grid, width)
        side.latent_pos_embed[:] = sine_positions(_grid_of(tokenizer.config.tokens), width)
        for module in side.modules():
            if isinstance(module, Attention):
                _attend_nearby(module)
    for latent_token in (tokenizer.encoder.latent_tokens, tokenizer.decoder.mask_token):
        nn.init.zeros_(latent_token)
    for linear in (tokenizer.to_quantizer, tokenizer.from_quantizer):
        nn.init.xavier_uniform_(linear.weight)
    encoded = torch.randn(8, tokenizer.config.tokens, tokenizer.quantizer.in_dim)
    tokenizer.from_quantizer.weight /= tokenizer.quantizer(encoded).latent.std()  # mixtures of codewords are small
    projection = tokenizer.encoder.vit.patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return sines and cosines of row and column (rows·columns, width) on a unit square.

    The positions of neighbours on an 8 × 8 grid are nearly orthogonal.
    """
    rows, columns = ((torch.arange(n) + 0.5) / n for n in grid)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).view(-1, 2, 1)
    frequencies = 8 * math.pi * (torch.arange(width // 4) + 0.5) / (width // 4)
    angles = (places * frequencies).flatten(1)
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 4))


def _attend_nearby(attention: Attention, sharpness: float = 8.0) -> None:
    """Start an attention with logits of `sharpness` · cosine (of layer-normed tokens) in every head.

    Values pass through unchanged.
    """
    D = attention.proj.in_features
    d = D // attention.heads
    query, key, value = attention.qkv.weight.chunk(3)
    for head in range(attention.heads):
        directions = nn.init.orthogonal_(torch.empty(d, D)) * math.sqrt(sharpness / math.sqrt(d))
        query[head * d : (head + 1) * d] = directions
        key[head * d : (head + 1) * d] = directions
    nn.init.orthogonal_(value)
    attention.proj.weight.copy_(value.T)


def _grid_of(tokens: int) -> tuple[int, int]:
    """Return the most square grid (rows, columns) of this many cells."""
    rows = next(n for n in range(math.isqrt(tokens), 0, -1) if tokens % n == 0)
    return rows, tokens // rows
