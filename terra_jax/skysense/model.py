"""The whole SkySense: one high-resolution image and two Sentinel series of a place, fused on the Sentinel-2 grid."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from data_pipelines.modalities import ALIASES
from terra_jax.errors import ConfigError
from terra_jax.parallel.activations import split_examples
from terra_jax.skysense.encoders import HREncoder, SeriesEncoder
from terra_jax.skysense.fusion import Fusion, UpHead
from terra_jax.skysense.inputs import MODALITIES, STATISTICS, standard_input
from terra_jax.skysense.variants import DAYS, HR_PIXELS, PARTS, SkySenseSize
from terra_jax.weights.rules import WeightMap

DATED = {"all": MODALITIES, "s2": ("S2L2A",), "none": ()}
"""Option -> whose frames get date positions: all (the paper), Sentinel-2's (the code of SkySense++), or nobody's."""


class SkySense(nnx.Module):
    """Encoders of the three modalities, alignment heads and fusion.

    Args:
        variant: sizes.
        rngs: source of the initial values.
        hr_drop_path: drop rate of the last block of the HR encoder in training.
        drop_path: drop rate of the last MLP of the series' encoders and of the fusion in training.
        class_token: whether the series' encoders are fed their class token (SkySense++ does not).
        eps: of the norms of the series' encoders and of the fusion.
        date_positions: whose frames get date positions, a key of `DATED`.
        pad_small_map: pad HR maps smaller than a window: without it, high-resolution images need 256 pixels a side.
        statistics: statistics set that standardises raw inputs.
        layout: "module" or "public", of the PyTorch files (`terra_jax.skysense.torch_weights`).
        remat: rematerialisation policy of all blocks (`terra_jax.nn.stacking.REMAT_POLICIES`).
        dtype: compute dtype.

    Raises:
        ConfigError: sizes that do not fit one another, or an unknown option.
    """

    def __init__(
        self,
        variant: SkySenseSize,
        *,
        rngs: nnx.Rngs,
        hr_drop_path: float = 0.0,
        drop_path: float = 0.0,
        class_token: bool = False,
        eps: float = 1e-5,
        date_positions: str = "all",
        pad_small_map: bool = False,
        statistics: str = STATISTICS,
        layout: str = "module",
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        v = variant
        _check_sizes(v)
        if date_positions not in DATED:
            raise ConfigError(f"unknown date_positions {date_positions!r}; choose one of {', '.join(DATED)}")
        common: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        built = {**common, "layout": layout, "remat": remat, "statistics": statistics}
        series = {**built, "class_token": class_token, "eps": eps, "drop_path": drop_path}
        self.variant = v
        self.dated = DATED[date_positions]
        self.statistics = statistics
        self.hr = HREncoder(v.hr, drop_path=hr_drop_path, pad_small_map=pad_small_map, **built)
        self.s2 = SeriesEncoder(v.s2, dates=date_positions != "none", **series)
        self.s1 = SeriesEncoder(v.s1, dates=False, **series)
        self.head_s2 = UpHead(v.s2, **common)
        self.head_s1 = UpHead(v.s1, **common)
        self.fusion = Fusion(v.fusion, drop_path=drop_path, eps=eps, remat=remat, **common)

    @property
    def weight_map(self) -> dict[str, WeightMap]:
        """How the parameters of each part are named and laid out in PyTorch."""
        return {part: getattr(self, part).weight_map for part in PARTS}

    def __call__(
        self,
        images: Mapping[str, Num[Array, "b ..."]],
        days: Mapping[str, Int[Array, "b t"]] | None = None,
        present: Mapping[str, Bool[Array, "b t"]] | None = None,
        *,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w f"]:
        """Fused features on the Sentinel-2 grid, h x w pixels of 10 m; any of the modalities may be left out.

        Args:
            images: "HR": (b, 32 h, 32 w, 3), red, green, blue, 0..255; "S2L2A": (b, t, h, w, 10), digital numbers
                without offset, without B01 and B09; "S1GRD": (b, t', h, w, 2), VV and VH in dB.
            days: modality -> day of the year of each frame, 0..365; HR may lack them.
            present: modality -> which frames count (None: all); the others have no influence and get no gradient.
            normalised: the images are standardised.
            bands: modality -> names of the image's channels, where they are not those.
            fill: what stands for bands that are not given: "zero", "mean" or "copy:BAND".
            key: randomness of drop path; None runs deterministically.

        Raises:
            ConfigError: unknown modalities, sizes or channels that do not fit, or a series without dates.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        self._check_days(images, days)
        aligned = self.aligned(images, present=present, normalised=normalised, bands=bands, fill=fill, key=keys[0])
        return self.fuse(aligned, days, present, key=keys[1])

    def aligned(
        self,
        images: Mapping[str, Num[Array, "b ..."]],
        *,
        present: Mapping[str, Bool[Array, "b t"]] | None = None,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
        key: Key[Array, ""] | None = None,
    ) -> dict[str, Float[Array, "b t h w c"]]:
        """Features of each modality by itself, all of one width on the Sentinel-2 grid; HR has one frame.

        Arguments as for calling the model. Frames that are not present are encoded as if they were mean values, so
        that whatever they hold, no-data included, reaches neither a result nor a gradient.
        """
        seen = {}
        for name, image in self._named(images).items():
            image = standard_input(
                image,
                name,
                statistics=self.statistics,
                normalised=normalised,
                bands=(bands or {}).get(name),
                fill=fill,
            )
            seen[name] = image[:, None] if name == "HR" else image
            if present is not None and name in present:
                seen[name] = jnp.where(present[name][..., None, None, None], seen[name], 0.0)
        keys = dict.fromkeys(MODALITIES)
        if key is not None:
            keys = dict(zip(MODALITIES, jax.random.split(key, len(MODALITIES)), strict=True))
        features = {}
        if "HR" in seen:
            features["HR"] = self.hr.maps(seen["HR"][:, 0], keys["HR"])[-1][:, None]
        if "S2L2A" in seen:
            features["S2L2A"] = self.head_s2(self.s2.encode(seen["S2L2A"], keys["S2L2A"]))
        if "S1GRD" in seen:
            features["S1GRD"] = self.head_s1(self.s1.encode(seen["S1GRD"], keys["S1GRD"]))
        return features

    def fuse(
        self,
        features: Mapping[str, Float[Array, "b t h w c"]],
        days: Mapping[str, Int[Array, "b t"]] | None = None,
        present: Mapping[str, Bool[Array, "b t"]] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w f"]:
        """Fused features from those of `aligned`; other arguments as for calling the model."""
        self._check_days(features, days)
        names = [name for name in MODALITIES if name in features]
        batch, _, height, width, _ = features[names[0]].shape
        tokens, seen = [], []
        for name in names:
            frames = features[name]
            shown = None if present is None else present.get(name)
            if shown is not None:
                frames = jnp.where(shown[..., None, None, None], frames, jnp.zeros((), frames.dtype))
            # Projected before they are gathered: nothing of the aligned width is copied.
            projected = self.fusion.projection(frames)
            if name in self.dated and days is not None and name in days:
                projected = projected + self._date_tokens(days[name]).astype(projected.dtype)[:, :, None, None]
            tokens.append(projected)
            seen.append(jnp.ones(frames.shape[:2], bool) if shown is None else shown)
        sequences = rearrange(jnp.concatenate(tokens, axis=1), "b t h w f -> (b h w) t f")
        mask = None
        if present is not None:
            mask = jnp.repeat(jnp.concatenate(seen, axis=1), height * width, axis=0)
        return self.fusion.fuse(sequences, mask, key).reshape(batch, height, width, -1)

    def _date_tokens(self, days: Int[Array, "b t"]) -> Float[Array, "b t f"]:
        """Date positions, projected as the features are that they belong to; leap years' last day is the day before."""
        assert self.s2.dates is not None
        chosen = self.s2.dates[...][jnp.clip(days, 0, DAYS - 1)]
        return split_examples(jnp.einsum("btc,cf->btf", chosen, self.fusion.projection.kernel[...]))

    def _named(self, images: Mapping[str, Num[Array, "b ..."]]) -> dict[str, Num[Array, "b ..."]]:
        """The images by their modalities' own names, their geometry checked."""
        named = {ALIASES.get(name, name): image for name, image in images.items()}
        if unknown := sorted(set(named) - set(MODALITIES)):
            raise ConfigError(f"SkySense takes {', '.join(MODALITIES)}, not {', '.join(unknown)}")
        if not named:
            raise ConfigError(f"no input given; name at least one of {', '.join(MODALITIES)}")
        sides = {}
        for name, image in named.items():
            wanted = 4 if name == "HR" else 5
            if image.ndim != wanted:
                shape = "(batch, height, width, 3)" if name == "HR" else "(batch, frames, height, width, bands)"
                raise ConfigError(f"{name} has shape {image.shape}; give {shape}")
            sides[name] = tuple(image.shape[-3:-1])
        ground = {name: side for name, side in sides.items() if name != "HR"}
        if len(set(ground.values())) > 1:
            raise ConfigError(f"S2L2A is {_by(ground['S2L2A'])} pixels and S1GRD {_by(ground['S1GRD'])}; give one size")
        if "HR" in sides:
            expected = next((tuple(HR_PIXELS * n for n in side) for side in ground.values()), sides["HR"])
            if sides["HR"] != expected or any(n % HR_PIXELS for n in sides["HR"]):
                raise ConfigError(
                    f"HR is {_by(sides['HR'])} pixels; give 32 along each pixel of 10 m"
                    + (f", here {_by(expected)}" if ground else ", so multiples of 32")
                )
        return named

    def _check_days(self, given: Mapping, days: Mapping | None) -> None:
        for name in ("S2L2A", "S1GRD"):
            if name in given and name in self.dated and (days is None or name not in days):
                raise ConfigError(
                    f'{name} has no dates; give days={{"{name}": day of the year of each frame}}, '
                    'or build the model with date_positions="none"'
                )


def drop_absent(
    images: Mapping[str, Num[np.ndarray, "b ..."]],
    days: Mapping[str, Int[np.ndarray, "b t"]],
    present: Mapping[str, Bool[np.ndarray, "b t"]],
    multiple: int = 1,
) -> tuple[dict, dict, dict]:
    """Shorten the series of a batch, on the host, to the most frames that any of its samples has.

    The present frames of each sample are moved to the front; since frames carry dates and no order, the fused features
    stay the same. A modality that the whole batch lacks is left out, unless all are.

    Args:
        images, days, present: as the model takes them.
        multiple: lengths are rounded up to multiples of it, so that few programs are compiled.

    Returns:
        The three, shortened.
    """
    kept: tuple[dict, dict, dict] = ({}, {}, {})
    for name, image in images.items():
        shown = present.get(name)
        if shown is not None and not shown.any() and len(images) > 1 and any(p.any() for p in present.values()):
            continue
        chosen = {"images": image, "days": days.get(name), "present": shown}
        if shown is not None and name != "HR":
            length = -(-max(1, int(shown.sum(1).max())) // multiple) * multiple
            order = np.argsort(~shown, axis=1, kind="stable")[:, :length]
            chosen = {
                what: None if array is None else np.take_along_axis(array, _like(order, array), axis=1)
                for what, array in chosen.items()
            }
        for into, array in zip(kept, chosen.values(), strict=True):
            if array is not None:
                into[name] = array
    return kept


def _like(order: np.ndarray, array: np.ndarray) -> np.ndarray:
    return order.reshape(*order.shape, *(1,) * (array.ndim - 2))


def _by(side: Sequence[int]) -> str:
    return f"{side[0]} x {side[1]}"


def _check_sizes(v: SkySenseSize) -> None:
    widths = {v.hr.widths[-1], v.s2.aligned, v.s1.aligned, v.fusion.inputs}
    if len(widths) > 1:
        raise ConfigError(f"the last HR stage, both aligned widths and the fusion's inputs must agree, not be {widths}")
    if v.hr.stride != HR_PIXELS:
        raise ConfigError(f"the HR encoder's stride is {v.hr.stride}; choose patch and stages that give {HR_PIXELS}")
