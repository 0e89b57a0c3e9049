"""Clothing-1M's job goes its whole way on a small copy of the set's own layout, resumes, and refuses what it can't."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from jobs import clothing1m
from rhostream.models import build
from tests.support.shards import write_shard

REPOSITORY = Path(__file__).parent.parent
CLASSES = 14
NAMES = ["T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit",
         "Shawl", "Dress", "Vest", "Underwear"]  # fmt: skip
has_recipe = pytest.mark.skipif(
    importlib.util.find_spec("shards.recipes.clothing1m") is None, reason="there is no recipe for Clothing-1M yet"
)


def photograph(number: int, label: int) -> bytes:
    """A JPEG of 40 x 36 pixels whose colour tells the class."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (40, 36, 3), dtype=np.uint8)
    pixels[..., label % 3] += np.uint8(10 * label)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def layout(root: Path) -> Path:
    """Clothing-1M as it is unpacked: key lists, label files, class names, images/N/N/*.jpg."""
    lists: dict[str, list[str]] = {}
    labels: dict[str, dict[str, int]] = {"clean": {}, "noisy": {}}
    counts = {"clean_train": 28, "clean_val": 14, "noisy_train": 70, "clean_test": 28}
    number = 0
    for name, count in counts.items():
        for _ in range(count):
            label, key = number % CLASSES, f"images/{number % 3}/{number % 7}/{number},{number * 7}.jpg"
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(number, label))
            lists.setdefault(name, []).append(key)
            if name.startswith("clean"):
                labels["clean"][key] = label
            labels["noisy"][key] = label if number % 3 else (label + 1) % CLASSES
            number += 1
    for name, keys in lists.items():
        (root / f"{name}_key_list.txt").write_text("".join(f"{key}\n" for key in keys))
    for kind, found in labels.items():
        (root / f"{kind}_label_kv.txt").write_text("".join(f"{key} {label}\n" for key, label in found.items()))
    (root / "category_names_eng.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return root


def shards(out: Path) -> None:
    """What the recipe would make of such a set, without it: facts as it writes them."""
    for split, counts in (("train", (60, 52)), ("test", (28,))):
        number = 0
        for at, count in enumerate(counts):
            samples: list[dict[str, object]] = []
            for _ in range(count):
                true = number % CLASSES
                label = true if number % 3 or split == "test" else (true + 1) % CLASSES
                samples.append({
                    "__key__": f"clothing1m-{number:07d}", "jpg": photograph(number, true), "cls": str(label),
                    "json": {"true_label": true if number % 4 else None, "is_noisy": label != true if number % 4 else
                             None, "origin": "noisy_train", "group": f"images/{number}.jpg"},
                })  # fmt: skip
                number += 1
            write_shard(out / "shards" / split / f"{split}-{at:05d}.tar", samples)


def job(*arguments: object) -> Result:
    return CliRunner().invoke(clothing1m.main, [str(a) for a in arguments])


@pytest.mark.slow
def test_the_chain_runs_resumes_and_reports(tmp_path: Path) -> None:
    shards(tmp_path)
    start = build("small-cnn", image_size=32, channels=3, classes=1000)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    smoke = ["--smoke", "--out", tmp_path, "--init", tmp_path / "start.safetensors"]
    assert job("--stage", "prepare", *smoke).exit_code == 0
    first = job(*smoke)
    assert first.exit_code == 0, first.output
    table = re.findall(r"^(rho-il-random|uniform) +(\d+) +(0\.\d+) +(0\.\d+) +(\S.*)$", first.stdout, re.MULTILINE)
    assert [row[0] for row in table] == ["rho-il-random", "uniform"]
    assert all(int(row[1]) == 112 // 20 for row in table)
    assert "(1 and 2)" in table[0][4] and "(2 and 30)" in table[1][4]
    assert (tmp_path / "report.html").stat().st_size > 10_000

    record = json.loads((tmp_path / "runs" / "rho-il-random" / "run.json").read_text())["settings"]
    assert record["keep_holdout"] and record["init"].endswith("start.safetensors")
    info = json.loads((tmp_path / "il-model-random" / "model.json").read_text())
    assert info["split"]["mode"] == "fraction" and info["split"]["group_by"] == "group"
    assert info["classes"] == CLASSES and info["preprocess"]["mean"] == [0.485, 0.456, 0.406]

    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.suffix in (".parquet", ".safetensors")}
    again = job(*smoke)
    assert again.stdout == first.stdout
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p in before} == before


@pytest.mark.slow
@has_recipe
def test_the_sets_own_files_are_where_it_starts(tmp_path: Path) -> None:
    found = job("--smoke", "--source", layout(tmp_path / "source"), "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert len(list((tmp_path / "out" / "shards" / "train").glob("*.tar"))) == 5
    assert "rho-il-random" in found.stdout


def test_an_il_model_that_started_elsewhere_has_its_own_table_and_run(tmp_path: Path) -> None:
    places = [clothing1m.Places(str(tmp_path), start) for start in ("random", "pretrained")]
    assert len({p.il for p in places} | {p.il_model for p in places} | {p.run("rho") for p in places}) == 6
    assert places[0].run("uniform") == places[1].run("uniform")


def test_what_cannot_be_is_one_sentence_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = job("--out", tmp_path / "no")
    assert bare.exit_code == 2 and "give its weights with --init" in bare.stderr
    empty = job("--smoke", "--out", tmp_path / "no")
    assert empty.exit_code == 2 and "holds no shards; give the folder of Clothing-1M's own files" in empty.stderr
    assert job("--smoke", "--out", tmp_path / "no", "--stage", "reprot").exit_code == 2
    rules = job("--smoke", "--out", tmp_path / "no", "--rules", "rho,unifrom")
    assert rules.exit_code == 2 and "did you mean 'uniform'" in rules.stderr
    monkeypatch.setenv("WORLD_SIZE", "4")
    ranks = job("--smoke", "--out", tmp_path / "no")
    assert ranks.exit_code == 2 and "--stage train under torchrun" in ranks.stderr
    assert not (tmp_path / "no").exists()


def test_the_settings_are_the_papers() -> None:
    paper = clothing1m.Settings()
    assert (paper.target, paper.il_model) == ("torchvision:resnet50", "torchvision:resnet18")
    assert (paper.buffer_size, paper.batch_size, paper.lr, paper.weight_decay) == (320, 32, 1e-3, 0.01)
    assert 1_061_883 // paper.buffer_size == 3318 and paper.eval_every * 10 >= 3318 > paper.eval_every * 9
    steps = paper.il_epochs * round(paper.il_share * 1_061_883) / 64
    assert 4480 <= steps <= 1.15 * 4480  # "37x fewer steps" than 50 passes, by whole passes


def test_the_launch_file_is_a_shell_script_of_options_that_exist() -> None:
    from torch.distributed.run import get_args_parser

    script = REPOSITORY / "examples" / "launch" / "clothing1m.slurm"
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    calls = re.findall(r"-m jobs\.clothing1m ((?:[^\n]*\\\n)*[^\n]*)", script.read_text())
    assert len(calls) == 3
    known = {name for option in clothing1m.main.params for name in option.opts}
    for call in calls:
        assert set(re.findall(r"--[a-z-]+", call)) <= known
    help_text = get_args_parser().format_help()
    launcher = script.read_text().split("torch.distributed.run")[1].split("-m jobs")[0]
    for option in re.findall(r"--[a-z-]+", launcher):
        assert option in help_text
