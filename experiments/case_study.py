"""What does a feature mean, found from its circuit alone? The paper's blind case studies, as a guided command.

    python -m experiments.case_study --out study                            # draw a feature; or --feature 2/417
    python -m experiments.case_study --out study --prompt 0                 # paths into it on a prompt, by numbers only
    python -m experiments.case_study --out study --together                 # what its prompts have in common
    python -m experiments.case_study --out study --weights 0/88             # a feature by its weights: words are free
    python -m experiments.case_study --out study --hypothesis "end years"   # say what it means; then
    python -m experiments.case_study --out study --reveal                   # look, and
    python -m experiments.case_study --out study --verdict success          # say how well it was said
    python -m experiments.case_study --out study --page                     # all of it as one page, study/page.html

The rules (Dunefsky et al. 2024, section 5.1 and appendix H): no text of any prompt is seen before a hypothesis is
stated, only activations, positions and circuits; what weights say without a prompt is free, de-embeddings included.
`--restricted` also hides which features of layer 0 are on in a prompt, which nearly name its tokens. Everything asked
for goes into `log.jsonl` with the time and the answer, and a hypothesis after the reveal is refused. Prompts are the
contexts of the strongest examples in a corpus, cut off behind the example, as the paper takes them.

The first command takes `--model`, `--transcoders` and `--corpus`; the others find them in the folder.
"""

import json
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import tcircuits as tc
from experiments.cases import page
from experiments.common import plain
from experiments.lm import rows, sweeps
from tcircuits.transcoders.evaluation.data import open_rows
from tcircuits.transcoders.presets import usual_set
from tcircuits.types import InputError
from tcircuits.view.case import case_page
from tcircuits.view.page import write_html

VERDICTS = ("success", "mostly", "failure")
LAYER_ZERO = re.compile(r"mlp0tc\[\d+\]")


@dataclass(frozen=True)
class Config:
    """A study's folder and the next step; without a step a new study begins."""

    out: Path = Path("study")
    """The study's folder; new for a new study."""
    prompt: int | None = None
    """Paths into the feature on this prompt."""
    together: bool = False
    """The strongest components over all prompts, by distance from the prompt's end."""
    weights: str | None = None
    """A feature LAYER/NUMBER from weights alone; with --through also through heads."""
    through: tuple[str, ...] = ()
    """Heads LAYER/HEAD from that feature down."""
    hypothesis: str | None = None
    """What the feature means."""
    reveal: bool = False
    """Show the prompts, once a hypothesis is stated."""
    verdict: Literal["success", "mostly", "failure"] | None = None
    """How well the hypothesis fits, after the reveal."""
    page: bool = False
    """Write page.html into the folder of a finished study."""
    model: str = "tiny"
    """Of a new study."""
    transcoders: str | None = None
    """Of a new study; default: the model's usual set."""
    corpus: str | None = None
    """Of a new study, as for `tcircuits features`; default: held-out text of the embedded model."""
    tokens: int = 65_536
    """Of the corpus that are read."""
    feature: str | None = None
    """LAYER/NUMBER; default: a live one, drawn at random."""
    prompts: int = 12
    """Strongest examples, each of another text."""
    restricted: bool = False
    """Hide which features of layer 0 a prompt has."""
    iterations: int = 5
    """Nodes of a path."""
    branches: int = 15
    """Paths kept at each level."""
    least: int = 20
    """Activations that a drawn feature has at least."""
    seed: int | None = None
    """Of the draw; default: the time."""


def begin(cfg: Config) -> None:
    """Choose a feature, look for its strongest examples, and write the study's folder.

    Raises:
        InputError: a folder that exists, a feature that is on nowhere.
    """
    if cfg.out.exists():
        raise InputError(f"{cfg.out} exists; give a new folder with --out, or a step of that study")
    model = tc.load_model(cfg.model)
    name = cfg.transcoders or usual_set(cfg.model)
    d, text = tc.load_transcoders(name, model=model), _text(cfg, model)
    wanted = None if cfg.feature is None else pair(cfg.feature, "--feature")
    found = tc.feature_statistics(model, d, text, top=8 * cfg.prompts, drawn=1)
    layer, number = _drawn(cfg, found) if wanted is None else wanted
    examples = found.tokens_of(layer, number)["top"]
    if not len(examples):
        raise InputError(f"feature {layer}/{number} is on nowhere in these {found.n_positions:,} tokens: give another")
    _, first = np.unique(examples // found.context, return_index=True)
    slot = found.slot(layer)
    keep = np.sort(first)[: cfg.prompts]
    values = found.value[slot, number][keep]
    cut = [text[t // found.context][: t % found.context + 1] for t in examples[keep]]
    about = {
        "model": cfg.model, "transcoders": name, "layer": layer, "feature": number, "restricted": cfg.restricted,
        "positions": found.n_positions, "density": found.density[slot, number], "largest": found.largest[slot, number],
        "values": values, "lengths": [len(c) for c in cut],
    }  # fmt: skip
    cfg.out.mkdir(parents=True)
    hidden: dict[str, Any] = {str(i): np.asarray(c, np.int32) for i, c in enumerate(cut)}
    np.savez_compressed(cfg.out / "hidden.npz", **hidden)
    (cfg.out / "study.json").write_text(json.dumps(about, indent=1, default=plain) + "\n", encoding="utf-8")
    log(cfg.out, "begin", {"restricted": cfg.restricted})
    print(f"Feature {number} of layer {layer}: on at {about['density']:.2%} of {found.n_positions:,} tokens, "
          f"largest {about['largest']:.3g}")  # fmt: skip
    for i, (value, c) in enumerate(zip(values, cut, strict=True)):
        print(f"  prompt {i}: {value:.3g} at position {len(c) - 1}")
    print("Next: --prompt 0, --together, --weights LAYER/NUMBER; then --hypothesis TEXT")


def _drawn(cfg: Config, found: Any) -> tuple[int, int]:
    """A live feature of a layer above the first."""
    live = np.argwhere(found.n_active >= cfg.least)
    live = live[live[:, 0] > 0] if (live[:, 0] > 0).any() else live
    if not len(live):
        raise InputError(f"no feature is on at {cfg.least} tokens; give more --tokens or a lower --least")
    seed = time.time_ns() if cfg.seed is None else cfg.seed
    slot, number = live[np.random.default_rng(seed).integers(len(live))]
    return found.cfg.layers[slot], int(number)


def _text(cfg: Config, model: tc.Model) -> np.ndarray:
    context = min(sweeps.CONTEXT, model.cfg.n_ctx)
    if cfg.corpus is None:
        if cfg.model != "tiny":
            raise InputError("give --corpus: only the embedded model brings its own text")
        return rows.held_out(rows.text_of(sweeps.ASSETS), cfg.tokens // context, context, seed=13)
    with open_rows(cfg.corpus, model, context=context) as source:
        return np.asarray(source.rows(0, min(source.n, cfg.tokens // context)))


@dataclass(frozen=True)
class Study:
    """A study that has begun."""

    folder: Path
    about: dict[str, Any]
    prompts: tuple[np.ndarray, ...]
    log: tuple[dict[str, Any], ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """What was done so far, in order."""
        return tuple(line["step"] for line in self.log)

    def feature(self, i: int) -> tc.Feature:
        """The feature at the end of a prompt."""
        return tc.Feature(layer=self.about["layer"], position=len(self.prompts[i]) - 1, index=self.about["feature"])


def read(folder: Path) -> Study:
    """A study's folder.

    Raises:
        InputError: it is none.
    """
    try:
        about = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        with np.load(folder / "hidden.npz", allow_pickle=False) as hidden:
            prompts = tuple(hidden[str(i)] for i in range(len(about["values"])))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is no study ({error}); begin one: --out {folder} without another step") from error
    return Study(folder, about, prompts, tuple(json.loads(line) for line in lines))


def log(folder: Path, step: str, what: dict[str, Any]) -> None:
    """Add a line to the study's log."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "step": step, **what}
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=plain) + "\n")


def pair(text: str, option: str) -> tuple[int, int]:
    """Two numbers A/B.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None:
        raise InputError(f"{option} {text!r}: give two numbers, such as 2/417")
    return int(found[1]), int(found[2])


def opened(study: Study) -> tuple[tc.Model, tc.Transcoders]:
    """Model and dictionaries of a study."""
    model = tc.load_model(study.about["model"])
    return model, tc.load_transcoders(study.about["transcoders"], model=model)


def shown(study: Study, text: str) -> str:
    """A path as the rules allow it."""
    return LAYER_ZERO.sub("mlp0tc[hidden]", text) if study.about["restricted"] else text


def look(cfg: Config, study: Study, number: int) -> None:
    """Paths into the feature on one prompt."""
    if not 0 <= number < len(study.prompts):
        raise InputError(f"--prompt {number}: this study has prompts 0..{len(study.prompts) - 1}")
    text = shown(study, _paths(cfg, *opened(study), study, number).text)
    log(study.folder, "prompt", {"number": number, "paths": text.splitlines()})
    print(text, end="")


def _paths(cfg: Config, model: tc.Model, d: tc.Transcoders, study: Study, number: int) -> tc.PathGraph:
    options: Any = {"iterations": cfg.iterations, "branches": cfg.branches}
    return tc.find_paths(model, d, study.prompts[number], target=study.feature(number), **options)


def together(cfg: Config, study: Study) -> None:
    """Components by their mean contribution over all prompts, each at its distance from the end."""
    model, d = opened(study)
    total: dict[str, list[float]] = defaultdict(list)
    for i, tokens in enumerate(study.prompts):
        graph = _paths(cfg, model, d, study, i)
        for node in range(1, len(graph.merged.value)):
            name = shown(study, from_end(graph.node_name(node), len(tokens)))
            total[name].append(float(graph.merged.value[node]))
    n = len(study.prompts)
    best = sorted(total.items(), key=lambda item: -abs(sum(item[1])))[:40]
    rows = [(name, sum(values) / n, min(len(values), n)) for name, values in best]
    log(study.folder, "together", {"components": rows})
    for name, mean, there in rows:
        print(f"  {name:28s} {mean:+8.3f} a prompt, in {there} of {n}")


def from_end(name: str, length: int) -> str:
    """A component with its position counted from the prompt's end (-1 is the last)."""
    return re.sub(r"@(\d+)", lambda found: f"@{int(found[1]) - length}", name)


def weigh(cfg: Config, study: Study, which: str) -> None:
    """A feature from weights alone."""
    from tcircuits.view.terminal_weights import show_weights

    layer, number = pair(which, "--weights")
    heads = [pair(h, "--through") for h in cfg.through]
    found = tc.feature_weights(*opened(study), layer, number, through=heads)
    log(study.folder, "weights", {"feature": which, "through": cfg.through, "found": found})
    show_weights(found)


def state(study: Study, hypothesis: str) -> None:
    """Write a hypothesis down; the last before the reveal counts."""
    if "reveal" in study.steps:
        raise InputError("the prompts were revealed already: a hypothesis is stated before")
    if not hypothesis.strip():
        raise InputError("--hypothesis is empty: say what the feature means")
    log(study.folder, "hypothesis", {"text": hypothesis})
    print(f"noted after {len(study.steps)} steps; --reveal shows the prompts")


def reveal(study: Study) -> None:
    """Show the prompts' ends beside the hypothesis."""
    said = _said(study)
    if said is None:
        raise InputError("no hypothesis was stated: --hypothesis TEXT comes before --reveal")
    model = tc.load_model(study.about["model"])
    log(study.folder, "reveal", {})
    print(f"Hypothesis: {said}")
    for i, (value, tokens) in enumerate(zip(study.about["values"], study.prompts, strict=True)):
        words = [model.token(int(t)) for t in tokens[-24:]]
        print(f"  {i:2d} {value:7.3g}  {_printed(words[:-1])}[{_printed(words[-1:])}]")
    print(f"Say how well it fits: --verdict {', '.join(VERDICTS)}")


def _said(study: Study) -> str | None:
    texts = [line["text"] for line in study.log if line["step"] == "hypothesis"]
    return texts[-1] if texts else None


def _printed(words: Sequence[str]) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in "".join(words))


def judge(study: Study, verdict: str) -> None:
    """Write the verdict down, and print the study in one line."""
    if "reveal" not in study.steps:
        raise InputError("the prompts were not revealed yet: --reveal comes before --verdict")
    log(study.folder, "verdict", {"verdict": verdict})
    kind = "restricted blind" if study.about["restricted"] else "blind"
    print(f"tc{study.about['layer']}[{study.about['feature']}]: {kind}, {verdict} ({_said(study)})")


def write_case(study: Study) -> Path:
    """The page of a finished study, in its folder.

    Raises:
        InputError: it has no verdict yet: the page shows what is hidden until then.
    """
    if "verdict" not in study.steps:
        raise InputError("the study is not finished: --verdict comes before --page, which shows the prompts")
    model, d = opened(study)
    case = page.case_of(study.about, study.log, page.passages(model, d, study.about, study.prompts))
    return write_html(case_page(case), study.folder / "page.html")


def main(cfg: Config) -> None:
    """Begin, or take one step.

    Raises:
        InputError: several steps at once, or one that the rules do not allow yet.
    """
    steps = {
        "prompt": cfg.prompt is not None, "together": cfg.together, "weights": cfg.weights is not None,
        "hypothesis": cfg.hypothesis is not None, "reveal": cfg.reveal, "verdict": cfg.verdict is not None,
        "page": cfg.page,
    }  # fmt: skip
    asked = [name for name, there in steps.items() if there]
    if len(asked) > 1:
        raise InputError(f"one step at a time: {', '.join('--' + name for name in asked)} were given")
    if not asked:
        begin(cfg)
        return
    study = read(cfg.out)
    match asked[0]:
        case "prompt":
            look(cfg, study, int(cfg.prompt or 0))
        case "together":
            together(cfg, study)
        case "weights":
            weigh(cfg, study, str(cfg.weights))
        case "hypothesis":
            state(study, str(cfg.hypothesis))
        case "reveal":
            reveal(study)
        case "page":
            print(f"-> {write_case(study)}")
        case _:
            judge(study, str(cfg.verdict))


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Config))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
