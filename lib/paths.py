"""Every folder and file name of the project.

Owns the layout and nothing else: it creates no folder and reads no file. `build/` and `.cache/` are git-ignored;
`notebooks/`, `figures/` and `data/` are what is published.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIB = ROOT / "lib"
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
DATA = ROOT / "data"
PROFILES = DATA / "profiles"
DATASETS = DATA / "datasets"
UTILITY = DATA / "utility.yaml"
PUBLISHED = DATA / "published"
CLAIMS = DATA / "claims.yaml"
RESULTS = DATA / "results"
ORGANISMS = DATA / "organisms"
LOCK = ROOT / "requirements.lock"
BUILD = ROOT / "build"
RUN_PROFILES = BUILD / "profiles"  # made by a command line that names models
CACHE = ROOT / ".cache"


def run_folder(profile: str, seed: int) -> Path:
    """Everything one run of one profile and seed leaves behind."""
    return BUILD / profile / f"seed-{seed}"


def result_file(root: Path, notebook: str) -> Path:
    """`root` is a run folder or a published `data/results/<profile>/seed-<n>`."""
    return root / f"{notebook}.json"


def published_results(profile: str, seed: int) -> Path:
    return RESULTS / profile / f"seed-{seed}"


def shipped_organism(seed: int) -> Path:
    """Weights that come with the repository, one folder a model."""
    return ORGANISMS / f"seed-{seed}"
