"""TerraFM in PyTorch, written from its published description: the other side of benchmarks and parity tests.

The library never imports this file. Parameter names and shapes are the public model's, so that a state dict which
loads here with `strict=True` loads there. `arXiv 2506.06281` describes the model; DINO (Caron et al. 2021) the head,
the loss and the teacher. Needs `pip install "terra_jax[torch]"`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEMS = ("s1", "s2_l1c", "s2_l2a")


@dataclass(frozen=True)
class Size:
    """Of the encoder: width, depth, attention heads; pixels per side of a patch and of the position table's image."""

    width: int
    depth: int
    heads: int
    patch: int = 16
    image: int = 224


SIZES = {
    "nano": Size(64, 4, 2, patch=4, image=16),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
}


class Projection(nn.Module):
    """Shared token projection of the stems: D -> D -> norm -> D -> d, without a non-linearity but the norm."""

    def __init__(self, stem_width: int, width: int):
        super().__init__()
        self.proj1 = nn.Linear(stem_width, stem_width, bias=False)
        self.norm_input = nn.LayerNorm(stem_width, eps=1e-5)
        self.proj2 = nn.Linear(stem_width, stem_width)
        self.proj3 = nn.Linear(stem_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., d)."""
        return self.proj3(self.proj2(self.norm_input(self.proj1(x))))


class PatchEmbed(nn.Module):
    """One strided convolution and one learned vector a modality, then the shared projection."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        stem_width = 3 * width
        self.s2_l2a_embed = nn.Parameter(torch.zeros(1, stem_width))
        self.s2_l1c_embed = nn.Parameter(torch.zeros(1, stem_width))
        self.s1_embed = nn.Parameter(torch.zeros(1, stem_width))
        self.conv2d_s2_l2a = nn.Conv2d(12, stem_width, patch, patch)
        self.conv2d_s2_l1c = nn.Conv2d(12, stem_width, patch, patch)
        self.conv2d_s1 = nn.Conv2d(2, stem_width, patch, patch)
        self.projection = Projection(stem_width, width)

    def forward(self, x: Tensor, stem: str) -> Tensor:
        """Tokens of an image (batch, bands, height, width), row by row: (batch, tokens, d)."""
        tokens = getattr(self, f"conv2d_{stem}")(x).flatten(2).transpose(1, 2)
        return self.projection(tokens + getattr(self, f"{stem}_embed"))


class Attention(nn.Module):
    """Multi-head self-attention with one fused query-key-value projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend among tokens, (batch, tokens, d)."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    """d -> 4d -> d with the exact GELU."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth: a whole residual branch is dropped per sample."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)

    def _kept(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        """One block, (batch, tokens, d)."""
        x = x + self._kept(self.attn(self.norm1(x)))
        return x + self._kept(self.mlp(self.norm2(x)))


class TerraFM(nn.Module):
    """The public encoder: one modality in, the normed class token out.

    Args:
        size: a name in `SIZES`, or a `Size`.
        drop_path: rate of the last block in training; earlier blocks rise to it linearly.
    """

    def __init__(self, size: str | Size = "base", drop_path: float = 0.0):
        super().__init__()
        size = SIZES[size] if isinstance(size, str) else size
        self.patch, self.grid = size.patch, size.image // size.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, size.width))
        self.patch_embed = PatchEmbed(size.width, size.patch)
        rates = torch.linspace(0, drop_path, size.depth).tolist()
        self.blocks = nn.ModuleList(Block(size.width, size.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(size.width, eps=1e-6)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor, stem: str = "s2_l1c") -> Tensor:
        """Encode images.

        Args:
            x: what the stem sees, (batch, bands, height, width); 2 bands for `s1`, 12 for the others.
            stem: one of `STEMS`.

        Returns:
            Class tokens after the last norm, (batch, width).
        """
        x = self._tokens(x, stem)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def feature_maps(self, x: Tensor, stem: str, blocks: Sequence[int]) -> list[Tensor]:
        """Patch tokens after the given blocks, normed, each (batch, width, rows, columns)."""
        grid = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        x = self._tokens(x, stem)
        maps = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in blocks:
                maps[i] = self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, grid)
        return [maps[i] for i in blocks]

    def _tokens(self, x: Tensor, stem: str) -> Tensor:
        patches = self.patch_embed(x, stem)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        return tokens + self._positions(x.shape[-2], x.shape[-1])

    def _positions(self, height: int, width: int) -> Tensor:
        rows, columns = height // self.patch, width // self.patch
        if rows * columns == self.grid**2 and height == width:
            return self.pos_embed
        table = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        # a tenth of a cell is added to the target size and stays in the sampling coordinates, as DINO has it
        scale = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        table = F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)


class DINOHead(nn.Module):
    """MLP, L2 normalisation, then prototypes of unit length: d -> hidden -> hidden -> bottleneck -> K logits."""

    def __init__(self, width: int, prototypes: int = 65536, hidden: int = 2048, bottleneck: int = 256):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        self.apply(_initialise)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Class tokens (batch, d) -> logits (batch, K)."""
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.prototypes, dim=-1))


class DINOTrainer(nn.Module):
    """One pretraining step: student, teacher by moving average, centring, cross-entropy over views, AdamW.

    Args:
        size: of the encoder.
        prototypes: K, the number of logits.
        hidden: width of the head's MLP.
        bottleneck: width of the head's last features.
        drop_path: stochastic depth of the student.
        student_temperature, teacher_temperature: of the two softmaxes.
        alpha: share of the global centre in what is subtracted; the rest is the frequent land covers' centre.
    """

    centre: Tensor
    frequent_centre: Tensor

    def __init__(
        self,
        size: str | Size = "base",
        *,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        drop_path: float = 0.1,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        alpha: float = 0.8,
    ):
        super().__init__()
        width = (SIZES[size] if isinstance(size, str) else size).width
        self.encoder, self.head = TerraFM(size, drop_path), DINOHead(width, prototypes, hidden, bottleneck)
        self.student = nn.ModuleList([self.encoder, self.head])
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.register_buffer("centre", torch.zeros(prototypes))
        self.register_buffer("frequent_centre", torch.zeros(prototypes))
        self.student_temperature, self.teacher_temperature, self.alpha = student_temperature, teacher_temperature, alpha

    def optimiser(self, learning_rate: float = 5e-4, weight_decay: float = 0.04) -> torch.optim.AdamW:
        """AdamW whose decay spares vectors and modality embeddings, in its fused form."""
        trained = list(self.student.parameters())
        vectors = [p for p in trained if p.squeeze().ndim <= 1]
        matrices = [p for p in trained if p.squeeze().ndim > 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)

    def loss(self, global_views: Tensor, local_views: Tensor | None, stem: str) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy between the teacher's view and every other view of the student.

        Args:
            global_views: (2, batch, bands, pixels, pixels).
            local_views: (n, batch, bands, pixels, pixels), or None.
            stem: one of `STEMS`.

        Returns:
            The loss, and the teacher's raw logits (2, batch, K).
        """
        batch = global_views.shape[1]
        with torch.no_grad():
            teacher_encoder, teacher_head = self.teacher
            logits = teacher_head(teacher_encoder(global_views.flatten(0, 1), stem)).unflatten(0, (2, batch))
            centre = self.alpha * self.centre + (1 - self.alpha) * self.frequent_centre
            targets = ((logits - centre) / self.teacher_temperature).softmax(-1)
        tokens = [self.encoder(global_views.flatten(0, 1), stem)]
        if local_views is not None:
            tokens.append(self.encoder(local_views.flatten(0, 1), stem))
        student = self.head(torch.cat(tokens)).unflatten(0, (-1, batch))
        student = (student / self.student_temperature).log_softmax(-1)
        views = len(student)
        # every pair of a teacher and a student view, but those of one and the same crop
        agreement = torch.einsum("tbk,sbk->ts", targets, student)
        different = ~torch.eye(2, views, dtype=torch.bool)
        return -agreement[different].sum() / (2 * (views - 1) * batch), logits

    @torch.no_grad()
    def after_update(self, logits: Tensor, frequent: Tensor, momentum: float = 0.996, rate: float = 0.9) -> None:
        """Move the teacher and both centres.

        Args:
            logits: the teacher's raw logits of this step, (2, batch, K).
            frequent: which samples show a frequent land cover, bool (batch,).
            momentum: of the teacher.
            rate: momentum of the centres.
        """
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)
        self.centre.lerp_(logits.mean((0, 1)), 1 - rate)
        if frequent.any():
            self.frequent_centre.lerp_(logits[:, frequent].mean((0, 1)), 1 - rate)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
