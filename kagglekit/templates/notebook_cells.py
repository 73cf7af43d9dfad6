"""The cells of the notebook that `kagglekit notebook` writes; one of constants comes before."""

# ruff: noqa: F821
# mypy: ignore-errors
# %%
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

INPUT = Path(os.environ.get("KAGGLE_INPUT", "/kaggle/input"))  # set it to try this elsewhere


def attached(kind, path):
    """The folder of an attached dataset or competition; Kaggle has two ways to mount them."""
    places = [INPUT / path.split("/")[-1], INPUT / kind / path]
    for place in places:
        if place.is_dir():
            return place
    raise SystemExit(f"{path} is not attached (looked at {places}): use 'Add Input'")


dataset = attached("datasets", DATASET)
data = attached("competitions", SLUG)
# %%
pack = dataset / "run.kagglekit"
with pack.open("rb") as handle:
    if hashlib.file_digest(handle, "sha256").hexdigest() != SHA256:
        raise SystemExit(f"{pack} is not of this notebook: upload both again")
home = Path(tempfile.mkdtemp())  # not in the notebook's output
with zipfile.ZipFile(pack) as archive:
    archive.extractall(home)
wheels = sorted(str(path) for path in dataset.glob("*.whl"))  # also those that you put there
install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
subprocess.run([*install, *wheels], check=True)
# %%
for name, trained in VERSIONS.items():
    here = sys.version.split()[0] if name == "python" else importlib.metadata.version(name)
    if here != trained:
        print(f"{name} {here} here, {trained} in training: answers may differ by rounding")
# %%
folders = {"RUNS": "runs", "COMPETITIONS": "competitions", "CACHE": "cache"}
environment = {f"KAGGLEKIT_{name}": str(home / folder) for name, folder in folders.items()}
predict = [sys.executable, "-m", "kagglekit", "predict", COMPETITION, RUN]
subprocess.run(
    [*predict, "--data", str(data), "--out", "submission.csv"],
    env={**os.environ, **environment},
    check=True,
)
print(Path("submission.csv").read_text()[:200])
