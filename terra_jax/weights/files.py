"""Weight files by their names: .pt, .pth and .ckpt in PyTorch's zip format, .safetensors in its own."""

from pathlib import Path

from terra_jax.errors import WeightsError
from terra_jax.weights.safetensors_file import read_safetensors, write_safetensors
from terra_jax.weights.state import LazyTensor, State
from terra_jax.weights.torch_file import read_torch, write_torch

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
SUPPORTED = ", ".join(SUFFIXES[:-1]) + " or " + SUFFIXES[-1]
HEAD = 512


def is_weight_file(path: Path) -> bool:
    """Whether the name is that of a weight file, whatever is there."""
    return path.suffix.lower() in SUFFIXES


def open_state(path: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a weight file by name; nothing but the table of contents is read until a tensor is.

    Args:
        path: A .pt, .pth, .ckpt or .safetensors file.

    Returns:
        A flat, ordered dict. Nested dicts of a .pt file are joined with dots (`unwrap` takes wrappers off).

    Raises:
        WeightsError: The file is missing, of an unknown kind, damaged, or might run code.
    """
    path = Path(path)
    _check_suffix(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(HEAD)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}); give a {SUPPORTED} file") from error
    kind, expected = _kind(path, head), "torch" if path.suffix.lower() in TORCH_SUFFIXES else "safetensors"
    if kind != expected:
        cure = ".safetensors" if kind == "safetensors" else ".pt"
        raise WeightsError(f"{path}: holds {kind} data under the name of the other format; rename it to end in {cure}")
    return read_torch(path) if kind == "torch" else read_safetensors(path)


def save_state(path: str | Path, state: State) -> None:
    """Writes a state dict as its suffix says, tensor by tensor; the file appears only when it is complete.

    Args:
        path: A .pt, .pth, .ckpt or .safetensors file.
        state: The tensors by name, in the order wanted.

    Raises:
        WeightsError: The suffix is unknown, a tensor cannot be stored, or the file cannot be written.
    """
    path = Path(path)
    _check_suffix(path)
    (write_torch if path.suffix.lower() in TORCH_SUFFIXES else write_safetensors)(path, state)


def _check_suffix(path: Path) -> None:
    if not is_weight_file(path):
        raise WeightsError(f"{path}: its suffix names no weight format; use {SUPPORTED}")


def _kind(path: Path, head: bytes) -> str:
    """What the first bytes say the file is: "torch" or "safetensors"; everything else is refused with its name."""
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"\x80") or head[257:262] == b"ustar":
        raise WeightsError(
            f"{path}: is in PyTorch's format from before 1.6, a bare pickle or tar, which is not read; "
            "load it with a PyTorch that you trust it with and torch.save it again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    raise WeightsError(f"{path}: is neither PyTorch nor safetensors data, or truncated; fetch or save it again")
