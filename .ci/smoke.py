"""Use an installed wheel as a stranger would: import, list, train a few steps, convert there and back."""

import subprocess
import sys
import time
from pathlib import Path

ENVIRONMENT_BIN = Path(sys.executable).parent


def terra_jax(*arguments: str) -> str:
    """Run the command; its output."""
    result = subprocess.run([ENVIRONMENT_BIN / "terra-jax", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"terra-jax {' '.join(arguments)}: status {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def main() -> None:
    """Run every step; exit with a message at the first that fails."""
    began = time.perf_counter()
    import terra_jax as package

    seconds = time.perf_counter() - began
    print(f"import terra_jax: {seconds:.2f} s from {Path(package.__file__).parent}")
    if seconds > 2:
        sys.exit("import terra_jax takes more than 2 s")
    if loaded := {"torch", "tensorflow", "jax"} & set(sys.modules):
        sys.exit(f"import terra_jax imports {', '.join(loaded)}")

    print(terra_jax("models"))
    tiny = ["--config.steps=4", "--config.batch_size=4", "--config.data.samples=256", "--config.evaluation.every=0"]
    print(terra_jax("train", "--config", "terrafm/nano", "--workdir", "run", *tiny))
    terra_jax("convert", "--model", "terrafm_nano", "--from", "run", "--to", "nano.pt")
    terra_jax("convert", "--model", "terrafm_nano", "--from", "nano.pt", "--to", "params")
    print(terra_jax("convert", "--model", "terrafm_nano", "--from", "params", "--to", "again.pt"))
    if Path("nano.pt").read_bytes() != Path("again.pt").read_bytes():
        sys.exit("conversion there and back changed the weights")
    print("smoke test: 1 passed, 0 failed")


if __name__ == "__main__":
    main()
