"""Tokens from corpora that `terra-jax tokenize` made (`data_pipelines.tokens`)."""

from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.shards import ShardReader
from data_pipelines.tokens import TokenRecord, decode_record, read_index, read_manifest


class TokenCorpus:
    """Random access to one corpus, or to several that are joined end to end.

    Args:
        path, others: folders that `terra-jax tokenize` finished.

    Attributes:
        index: of all samples.
        settings: crops a sample.
        size: pixels per side of what was tokenised.
        tokenizers: modality -> {"model", "fingerprint", "codebook"}.

    Raises:
        DataError: if a folder is no whole corpus, or two were made with different tokenizers or settings or share
            a sample.
    """

    def __init__(self, path: str | Path, *others: str | Path):
        roots = [Path(one) for one in (path, *others)]
        manifests = [read_manifest(root) for root in roots]
        jobs = [manifest["job"] for manifest in manifests]
        self.tokenizers = _common_tokenizers(roots, jobs)
        self.settings, self.size = (_common(roots, jobs, name) for name in ("settings", "size"))
        shards = [
            (root, shard) for root, manifest in zip(roots, manifests, strict=True) for shard in manifest["shards"]
        ]
        self._records = ShardReader([root / shard["file"] for root, shard in shards], [s["records"] for _, s in shards])
        self.index = read_index([root / shard["index"] for root, shard in shards])

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.index)

    def read(self, i: int, setting: int = 0) -> TokenRecord:
        """Sample `i` under a crop setting.

        Raises:
            DataError: naming the file and the record that is corrupt or of another tokenizer.
        """
        if not (0 <= i < len(self) and 0 <= setting < self.settings):
            raise IndexError(
                f"setting {setting} of sample {i}: there are {self.settings} settings, {len(self)} samples"
            )
        return self._records.read(i * self.settings + setting, self._decode)

    def read_all(self, i: int) -> tuple[TokenRecord, ...]:
        """Sample `i` under every crop setting.

        Raises:
            DataError: as of `read`.
        """
        return tuple(self.read(i, setting) for setting in range(self.settings))

    def _decode(self, record: bytes) -> TokenRecord:
        decoded = decode_record(record)
        for name, fingerprint in decoded.fingerprints.items():
            _check_same_tokenizer(name, "it", fingerprint, "the manifest", self.tokenizers[name]["fingerprint"])
        return decoded


def _check_same_tokenizer(name: str, one: str, fingerprint: str | int, other: str, expected: str | int) -> None:
    if fingerprint != expected:
        raise DataError(
            f"{name}: {one} has tokens of tokenizer {fingerprint}, {other} of {expected}; "
            "tokens of different tokenizers do not mix: tokenise both with the same weights"
        )


def _common_tokenizers(roots: list[Path], jobs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for root, job in zip(roots, jobs, strict=True):
        for name, tokenizer in job["tokenizers"].items():
            first, known = found.setdefault(name, (root, tokenizer))
            _check_same_tokenizer(name, str(root), tokenizer["fingerprint"], str(first), known["fingerprint"])
    return {name: tokenizer for name, (_, tokenizer) in found.items()}


def _common(roots: list[Path], jobs: list[dict[str, Any]], name: str) -> int:
    for root, job in zip(roots, jobs, strict=True):
        if job[name] != jobs[0][name]:
            raise DataError(f"{root} has {name} {job[name]}, {roots[0]} has {jobs[0][name]}; read them one by one")
    return jobs[0][name]
