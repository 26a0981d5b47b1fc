"""What can stand where the cursor is: asked by completion.bash at each TAB, so
with the standard library alone.

python -S scripts/complete.py "python train.py pe=co"
python -S scripts/complete.py "python evaluate.py run=outputs/"
python -S scripts/complete.py "cope-lab train task="

Where a wheel is installed it is in the package, with train.py and configs/.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

COMMANDS = ("train", "evaluate", "generate", "completion")  # of cope-lab
ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
SETTING = re.compile(r"^ *(\w+)=", re.MULTILINE)  # of a command's documentation: a line a key
CHOICES = r"^ *{key}=(\w+) +or (\w+(?:, \w+)*)$"  # where that line says all that may follow
# Whose settings are those of train.py too.
COMPOSED = ("train", "table", "report", "decide", "field", "costs", "tune", "position_term", "half_context", "runs")
CONFIG = {"prepare_corpus": "prepare_corpus.yaml", "probe_llm": "probe/llm.yaml"} | dict.fromkeys(COMPOSED, "train.yaml")


def candidates(line: str) -> list[str]:
    """Every word that can take the place of the last one of ``line``."""
    *before, word = line.split(" ")
    if before and Path(before[0]).name == "cope-lab":
        if len(before) == 1:
            return [f"{command} " for command in COMMANDS if command.startswith(word)]
        places = [ROOT / f"{before[1]}.py"]
    else:
        command = next((part for part in before if part.endswith(".py")), "")
        places = [Path(command), ROOT / command]
    script = next((path for path in places if path.is_file()), None)
    if script is None:
        return []
    key, equals, value = word.partition("=")
    if equals:
        *earlier, last = value.split(",")
        prefix = f"{key}={','.join(earlier)}," if earlier else f"{key}="
        return [prefix + found for found in values(script, key, last) if found.startswith(last)]
    chosen = dict(part.split("=", 1) for part in before if "=" in part)
    return sorted({found for found in keys(script, chosen) if found.startswith(word)})


def keys(script: Path, chosen: dict[str, str]) -> Iterator[str]:
    yield from (f"{key}=" for key in SETTING.findall(documentation(script)))
    if script.stem in CONFIG:
        yield from (f"{key}=" for key in yaml_keys(CONFIGS / CONFIG[script.stem]))
    if script.stem == "evaluate" and (path := config_of(chosen.get("run", ""))):
        yield from (f"{key}=" for key in yaml_keys(path) if key.startswith("task."))
    own = groups() if script.stem in COMPOSED else ["corpus"] if script.stem == "prepare_corpus" else []
    yield from (f"{group}=" for group in own)
    for group in {"pe", "task", "corpus"} & set(own):
        path = CONFIGS / group / f"{chosen.get(group, 'cope' if group == 'pe' else 'counting')}.yaml"
        if path.exists():
            yield from (f"{group}.{key}=" for key in yaml_keys(path) if not key.startswith(("_", "defaults")))


def documentation(script: Path) -> str:
    return script.read_text(encoding="utf-8").split('"""')[1]


def groups() -> list[str]:
    return ["pe", "task", "corpus", "scale", "logger", "hydra/launcher"]


def values(script: Path, key: str, value: str) -> Iterator[str]:
    if told := re.search(CHOICES.format(key=re.escape(key)), documentation(script), re.MULTILINE):
        yield from (told[1], *told[2].split(", "))
    elif key == "tasks":  # of scripts/field.py
        yield from (name[len("tasks.") :] for name in yaml_keys(CONFIGS / "field.yaml") if name.startswith("tasks."))
    elif key in (*groups(), "table", "encodings"):
        folder = CONFIGS / {"encodings": "pe"}.get(key, key)
        yield from sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    elif key in ("run", "runs"):
        yield from runs(value)
    elif "/" in value or key in ("to", "output_dir", "data_dir", "report", "corpus.train"):
        yield from paths(value)


def runs(value: str) -> Iterator[str]:
    """Folders, the hashes that ``value`` begins, and after one of them its seeds."""
    yield from (path for path in paths(value) if path.endswith("/"))
    code, slash, _ = value.partition("/")
    if re.fullmatch(r"[0-9a-f]{1,8}", code):
        found = Path("outputs").glob(f"*/*/{code}*/seed=*" if slash else f"*/*/{code}*")
        yield from sorted({f"{code}/{path.name}" if slash else path.name for path in found})


def config_of(run: str) -> Path | None:
    """The settings of a run, named by its folder or by the beginning of its hash and perhaps its seed."""
    code, _, seed = run.partition("/")
    found = Path("outputs").glob(f"*/*/{code}*/{seed or '*'}/config.yaml") if re.fullmatch(r"[0-9a-f]{1,8}", code) else ()
    return next((path for path in (Path(run, "config.yaml"), *found) if path.is_file()), None)


def paths(value: str) -> Iterator[str]:
    folder, slash, beginning = value.rpartition("/")
    try:
        found = sorted(path for path in Path(folder + slash or ".").iterdir() if path.name.startswith(beginning))
    except OSError:
        return
    for path in found:
        if not path.name.startswith(".") or beginning.startswith("."):
            yield f"{folder}{slash}{path.name}" + ("/" if path.is_dir() else "")


def yaml_keys(path: Path) -> Iterator[str]:
    """The whole names of a YAML file's keys, by their indentation."""
    parents: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"( *)([A-Za-z_]\w*):(.*)", line):
            depth = len(found[1]) // 2
            parents = [*parents[:depth], found[2]]
            if parents[0] not in ("defaults", "hydra") and not (depth == 0 and not found[3].split("#")[0].strip()):
                yield ".".join(parents)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]) or len(sys.argv) != 2:
        print(__doc__)
    else:
        print("\n".join(candidates(sys.argv[1])))
