"""Packaging of terra_jax; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
FAMILIES = [path.parent.name for path in ROOT.glob("configs/*/__init__.py")]
CONFIGS = ["terra_jax.configs", *(f"terra_jax.configs.{family}" for family in FAMILIES)]

setup(
    name="terra_jax",
    version="0.1.0",
    description="Pretraining of Earth-observation foundation models in JAX: TerraMind, TerraFM, SkySense",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["terra_jax*", "data_pipelines*"]), *CONFIGS],
    package_dir={"terra_jax.configs": "configs"},
    install_requires=[
        "absl-py",
        "array-record>=0.8",
        "einops>=0.8",
        "flax>=0.12.4,<0.13",
        "fsspec>=2024.2",
        "grain>=0.2.15",
        "jax>=0.10,<0.13",
        "jaxtyping>=0.3",
        "matplotlib>=3.8",
        "ml-collections>=1.1",
        "numcodecs>=0.15",
        "numpy>=2",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pyarrow>=17",
        "rasterio>=1.4",
        "safetensors>=0.5",
        "scipy>=1.13",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.8",
        "tqdm>=4.66",
        "xarray>=2024.10",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda12]"],
        "torch": ["torch>=2.4"],
        "beam": ["apache-beam>=2.60"],
        "xarray": ["h5netcdf>=1.3", "h5py>=3.10", "zarr>=3"],
        "test": [
            "apache-beam>=2.60",
            "h5netcdf>=1.3",
            "h5py>=3.10",
            "hypothesis>=6.100",
            "jax[tpu]",  # its compiler needs no TPU
            "mypy>=1.11",
            "pytest>=8",
            "ruff>=0.6",
            "zarr>=3",
        ],
    },
    entry_points={"console_scripts": ["terra-jax=terra_jax.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: GIS",
    ],
)
