"""TerraMind's encoder-decoder in PyTorch, written from its description: the other side of benchmarks and parity tests.

The library never imports this file. Parameter names and shapes are the public model's, so that a state dict which
loads here with `strict=True` loads there. It works as the public one does (arXiv 2504.11171; 4M, arXiv 2312.06647):
every token of every modality is embedded, sorted by its mask and cut to the budget. Needs
`pip install "terra_jax[torch]"`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """Of a model: as in `terra_jax.terramind.variants.Variant`."""

    width: int
    depth: int
    heads: int
    decoder_depth: int
    hidden: int
    gated: bool
    patch: int = 16
    grid: int = 14


SIZES = {
    "nano": Size(128, 4, 2, 2, 512, gated=False, patch=8, grid=8),
    "tiny": Size(192, 12, 3, 4, 768, gated=False),
    "small": Size(384, 12, 6, 6, 1536, gated=False),
    "base": Size(768, 12, 12, 12, 2048, gated=True),
    "large": Size(1024, 24, 16, 24, 2730, gated=True),
}
CHANNELS = {"sen2l2a": 12, "sen2l1c": 13, "sen2rgb": 3, "sen1grd": 2, "sen1rtc": 2, "dem": 1}
VOCABULARIES = {
    **{f"tok_{name}@224": 15360 for name in ("sen2l2a", "sen1grd", "sen1rtc", "dem")},
    "tok_lulc@224": 4375,
    "tok_ndvi@224": 15360,
    "coords": 30000,
}
INPUTS = (*(f"untok_{name}@224" for name in CHANNELS), *VOCABULARIES)
OUTPUTS = tuple(VOCABULARIES)
SEQUENCES = {"coords": 4}
"""Modality that is no image -> its longest length in the decoder."""
POSITIONS = 512
"""Of sequences."""

Batch = Mapping[str, Mapping[str, Tensor]]
"""Modality -> "tensor" (pixels or token ids), "input_mask" and "target_mask" (True: not there), and "attention" (the
number of targets at the first of them)."""


class LayerNorm(nn.Module):
    """Layer normalisation whose bias is a buffer of zeros."""

    bias: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-6)


class Attention(nn.Module):
    """Self-attention with one fused query-key-value projection."""

    def __init__(self, size: Size):
        super().__init__()
        self.heads = size.heads
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=not size.gated)
        self.proj = nn.Linear(size.width, size.width, bias=not size.gated)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Attend among tokens, (batch, n, d); `seen` is (batch, 1 or n, n)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, seen[:, None])
        return self.proj(x.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention to a context."""

    def __init__(self, size: Size):
        super().__init__()
        self.heads = size.heads
        self.q = nn.Linear(size.width, size.width, bias=not size.gated)
        self.kv = nn.Linear(size.width, 2 * size.width, bias=not size.gated)
        self.proj = nn.Linear(size.width, size.width, bias=not size.gated)

    def forward(self, x: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """(batch, m, d) attend to (batch, n, d)."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, seen[:, None])
        return self.proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with GELU and biases, or gated by SiLU and without."""

    def __init__(self, size: Size):
        super().__init__()
        self.fc1 = nn.Linear(size.width, size.hidden, bias=not size.gated)
        self.fc2 = nn.Linear(size.hidden, size.width, bias=not size.gated)
        self.fc3 = nn.Linear(size.width, size.hidden, bias=False) if size.gated else None

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        h = self.fc1(x)
        return self.fc2(F.gelu(h) if self.fc3 is None else F.silu(h) * self.fc3(x))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, size: Size):
        super().__init__()
        self.norm1 = LayerNorm(size.width)
        self.attn = Attention(size)
        self.norm2 = LayerNorm(size.width)
        self.mlp = MLP(size)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """One block."""
        x = x + self.attn(self.norm1(x), seen)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, attention to the context, MLP."""

    def __init__(self, size: Size):
        super().__init__()
        self.norm1 = LayerNorm(size.width)
        self.self_attn = Attention(size)
        self.cross_attn = CrossAttention(size)
        self.query_norm = LayerNorm(size.width)
        self.context_norm = LayerNorm(size.width)
        self.norm2 = LayerNorm(size.width)
        self.mlp = MLP(size)

    def forward(self, x: Tensor, context: Tensor, own: Tensor, seen: Tensor) -> Tensor:
        """One block."""
        x = x + self.self_attn(self.norm1(x), own)
        x = x + self.cross_attn(self.query_norm(x), self.context_norm(context), seen)
        return x + self.mlp(self.norm2(x))


class Embedding(nn.Module):
    """What a modality's tokens begin with: where they are and which modality they belong to.

    Args:
        name: of the modality.
        size: of the model.
    """

    pos_emb: Tensor

    def __init__(self, name: str, size: Size):
        super().__init__()
        self.mod_emb = nn.Parameter(0.02 * torch.randn(1, 1, size.width))
        table = _waves(POSITIONS, size.width) if name in SEQUENCES else _grid(size.grid, size.width)
        self.register_buffer("pos_emb", table[None])

    def place(self, positions: Tensor | None = None) -> Tensor:
        """Position and modality of all tokens of an image, or of a sequence's."""
        return self.mod_emb + (self.pos_emb if positions is None else self.pos_emb[0][positions])


class PixelEmbedding(Embedding):
    """Patches of an image."""

    def __init__(self, name: str, size: Size):
        super().__init__(name, size)
        self.patch = size.patch
        channels = CHANNELS[name.removeprefix("untok_").removesuffix("@224")]
        self.proj = nn.Linear(size.patch**2 * channels, size.width, bias=False)

    def forward(self, pixels: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, channels, height, width) -> content and place of every token."""
        patches = pixels.unflatten(-1, (-1, self.patch)).unflatten(-3, (-1, self.patch))
        x = self.proj(patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        return x, self.place().expand_as(x)


class TokenEmbedding(Embedding):
    """Discrete tokens of an image or of a sequence; in the decoder the table is the head, too."""

    def __init__(self, name: str, size: Size, head: bool = False):
        super().__init__(name, size)
        self.length = SEQUENCES.get(name, 0)
        self.token_emb = nn.Embedding(VOCABULARIES[name], size.width)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        if head:
            self.to_logits = nn.Linear(size.width, VOCABULARIES[name], bias=False)
            self.to_logits.weight = self.token_emb.weight

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, n) -> content and place of every token; a sequence is numbered without its masked tokens."""
        x = self.token_emb(ids)
        if not self.length:
            return x, self.place().expand_as(x)
        return x, self.place(((~mask).cumsum(1) - 1).clamp_min(0))

    def sequence_targets(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The same in the decoder, where positions beyond the longest length begin anew."""
        positions = ((~mask).cumsum(1) - 1).clamp_min(0)
        return self.token_emb(ids), self.place(torch.where(positions < self.length, positions, 0))


class TerraMind(nn.Module):
    """The public encoder-decoder.

    Args:
        size: a name in `SIZES`, or a `Size`.
        inputs, outputs: modalities of the encoder and of the decoder.
    """

    def __init__(self, size: str | Size = "base", inputs: Sequence[str] = INPUTS, outputs: Sequence[str] = OUTPUTS):
        super().__init__()
        size = SIZES[size] if isinstance(size, str) else size
        width = size.width
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.encoder_embeddings = nn.ModuleDict(
            {name: (TokenEmbedding if name in VOCABULARIES else PixelEmbedding)(name, size) for name in inputs}
        )
        self.decoder_embeddings = nn.ModuleDict({name: TokenEmbedding(name, size, head=True) for name in outputs})
        for name in set(inputs) & set(outputs):
            self.decoder_embeddings[name].mod_emb = self.encoder_embeddings[name].mod_emb
        self.encoder = nn.ModuleList(EncoderBlock(size) for _ in range(size.depth))
        self.encoder_norm = LayerNorm(width)
        self.decoder_proj_context = nn.Linear(width, width)
        self.decoder = nn.ModuleList(DecoderBlock(size) for _ in range(size.decoder_depth))
        self.decoder_norm = LayerNorm(width)

    def encode(self, batch: Batch, budget: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embed everything, keep the visible: encoder's output, places of its tokens, (batch, 1, n) which there are."""
        parts = []
        for name, embedding in self.encoder_embeddings.items():
            held = batch[name]
            parts.append((*embedding(held["tensor"], held["input_mask"]), held["input_mask"]))
        content, place, mask = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
        (content, place), mask = _kept((content, place), mask, budget)
        content, place = (x.masked_fill(mask[..., None], 0) for x in (content, place))
        x, seen = content + place, ~mask[:, None]
        for block in self.encoder:
            x = block(x, seen)
        return self.encoder_norm(x), place, seen

    def decode(self, batch: Batch, budget: int, encoded: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Decoder's output for the targets, their labels, and the number of each one's modality (-1 for none)."""
        x, place, seen = encoded
        context = self.decoder_proj_context(x) + place
        parts = []
        for number, name in enumerate(self.decoder_embeddings):
            parts.append(self._targets(name, number, **batch[name]))
        *tensors, mask = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
        (content, place, labels, modality, reach), mask = _kept(tensors, mask, budget)
        reach = reach.cumsum(1)
        ahead = torch.arange(reach.shape[1]) >= reach[..., None]
        own = ~ahead & (modality[:, :, None] == modality[:, None])
        content, place = (x.masked_fill(mask[..., None], 0) for x in (content, place))
        y = content + place
        for block in self.decoder:
            y = block(y, context, own, seen)
        return self.decoder_norm(y), labels.masked_fill(mask, 0), modality.masked_fill(mask, -1)

    def _targets(self, name, number, tensor, target_mask, attention, **_):
        """Content, place, labels, number of the modality, reach of attention and mask of a modality's tokens."""
        embedding, mask, labels = self.decoder_embeddings[name], target_mask, tensor
        if name in SEQUENCES:
            mask, labels, attention = mask[:, 1:] | mask[:, :-1], tensor[:, 1:], attention[:, 1:]
            content, place = embedding.sequence_targets(tensor[:, :-1], mask)
        else:
            content = self.mask_token.expand(*tensor.shape, -1)
            place = embedding.place().expand_as(content)
        return content, place, labels, torch.full_like(labels, number), attention, mask

    def forward(self, batch: Batch, inputs: int, targets: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the modalities of their targets' mean cross-entropies, and each of those.

        Args:
            batch: every modality whole.
            inputs, targets: budgets of encoder and decoder, tokens.
        """
        decoded, labels, modality = self.decode(batch, targets, self.encode(batch, inputs))
        losses = {}
        for number, (name, embedding) in enumerate(self.decoder_embeddings.items()):
            chosen = modality == number
            head: Any = embedding.to_logits
            logits = head(decoded[chosen])
            loss = F.cross_entropy(logits, labels[chosen]) if len(logits) else logits.sum()
            losses[name] = loss
        return torch.stack(list(losses.values())).mean(), losses

    def optimiser(self, rate: float = 1e-4) -> torch.optim.AdamW:
        """AdamW with 4M's betas and decay; norms and biases do not decay."""
        kept = [p for name, p in self.named_parameters() if "norm" in name or name.endswith(".bias")]
        held = {id(p) for p in kept}
        groups = [
            {"params": [p for p in self.parameters() if id(p) not in held], "weight_decay": 0.05},
            {"params": kept, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def unpacked(
    packed: Mapping[str, np.ndarray],
    pixels: Mapping[str, np.ndarray],
    inputs: Sequence[str] = INPUTS,
    outputs: Sequence[str] = OUTPUTS,
    patches: int = 196,
) -> dict[str, dict[str, Tensor]]:
    """Whole modalities with masks, as this model takes them, of packed slots.

    Args:
        packed: "inputs/stream", "inputs/position" ... "targets/label", as `data_pipelines.recipes.terramind` makes
            them; the streams number `inputs` and `outputs`.
        pixels: name of an input -> standardised images, (batch, height, width, channels).
        inputs, outputs: public names.
        patches: tokens of an image.
    """
    seen = {key: packed[f"inputs/{key}"] for key in ("stream", "position", "token")}
    asked = {key: packed[f"targets/{key}"] for key in ("stream", "position", "token", "label")}
    examples = len(seen["stream"])
    batch = {}
    for name in dict.fromkeys((*inputs, *outputs)):
        here = seen["stream"] == (inputs.index(name) if name in inputs else -2)
        wanted = asked["stream"] == (outputs.index(name) if name in outputs else -2)
        length = patches if name not in SEQUENCES else int((here.sum(1) + wanted.sum(1)).max()) + 2
        ids, attention = (np.zeros((examples, length), np.int64) for _ in range(2))
        masks = {key: np.ones((examples, length), bool) for key in ("input_mask", "target_mask")}
        for i in range(examples):
            at, to = seen["position"][i, here[i]], asked["position"][i, wanted[i]]
            ids[i, at] = seen["token"][i, here[i]]
            masks["input_mask"][i, at] = False
            if name in SEQUENCES and len(to):  # what the decoder is told, and behind it the last label
                begin, order = len(at), np.argsort(to)
                to = begin + np.arange(len(to) + 1)
                told, labels = (asked[key][i, wanted[i]][order] for key in ("token", "label"))
                ids[i, to], attention[i, to] = [*told, labels[-1]], 1
            elif len(to):
                ids[i, to] = asked["label"][i, wanted[i]]
                attention[i, to.min()] = len(to)
            masks["target_mask"][i, to] = False
        whole = np.moveaxis(pixels[name], -1, 1).copy() if name in pixels else ids
        batch[name] = {
            key: torch.from_numpy(a) for key, a in {"tensor": whole, "attention": attention, **masks}.items()
        }
    return batch


def _kept(tensors: Sequence[Tensor], mask: Tensor, budget: int) -> tuple[list[Tensor], Tensor]:
    """Sort what is not masked to the front, in order, and cut to the budget."""
    order = torch.argsort(mask + torch.linspace(0, 0.5, mask.shape[1]), dim=1)[:, :budget]
    gathered = [
        torch.gather(x, 1, order[..., None].expand(-1, -1, x.shape[2]) if x.ndim == 3 else order) for x in tensors
    ]
    return gathered, torch.gather(mask, 1, order)


def _waves(length: int, width: int) -> Tensor:
    """Sines, then cosines, of positions, (length, width)."""
    frequencies = 1 / 10_000 ** (torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def _grid(side: int, width: int) -> Tensor:
    """Waves of the row and of the column, (side * side, width)."""
    waves = _waves(side, width // 2)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
