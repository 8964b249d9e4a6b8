"""A finished case study as a page: its log told in order, its prompts with the feature's activation at every token."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import tcircuits as tc
from tcircuits.attribution.attribute import freeze_prompt
from tcircuits.attribution.settings import Settings
from tcircuits.view.case import Case, Cell, Passage, Step

SHOWN = 48  # tokens of a prompt, its end
Line = Mapping[str, Any]


def activations(model: tc.Model, d: tc.Transcoders, layer: int, number: int, tokens: np.ndarray) -> np.ndarray:
    """Of one feature at every token of a prompt, [T]."""
    frozen = freeze_prompt(model, d, tokens, Settings(None, position_zero="nodes"))
    here = np.asarray(frozen.valid[layer]) & (np.asarray(frozen.index[layer]) == number)
    return np.where(here, np.asarray(frozen.value[layer]), 0.0).sum(-1)


def passages(model: tc.Model, d: tc.Transcoders, about: Line, prompts: Sequence[np.ndarray]) -> list[Passage]:
    """The prompts of a study, each from `SHOWN` tokens before its end."""
    out = []
    for tokens in prompts:
        values = activations(model, d, about["layer"], about["feature"], tokens)[-SHOWN:].tolist()
        words = tuple(model.token(int(t)) for t in tokens[-SHOWN:])
        out.append(Passage(words, tuple(values), len(words) - 1, len(tokens) > SHOWN))
    return out


def case_of(about: Line, lines: Sequence[Line], shown: Sequence[Passage]) -> Case:
    """The page's contents, of a study that has a verdict."""
    texts = [line["text"] for line in lines if line["step"] == "hypothesis"]
    verdict = next(line["verdict"] for line in reversed(lines) if line["step"] == "verdict")
    n, kind = len(about["values"]), "restricted blind" if about["restricted"] else "blind"
    hidden = [f"the text of all {n} prompts: the strongest examples, each of another text, cut off behind the example"]
    hidden += ["which features of layer 0 are on in them"] * about["restricted"]
    facts = [
        ("rules", kind),
        ("model", about["model"]),
        ("transcoders", about["transcoders"]),
        ("on at", f"{about['density']:.3%} of {about['positions']:,} tokens"),
        ("largest", f"{about['largest']:.3g}"),
    ]
    title = f"tc{about['layer']}[{about['feature']}]"
    return Case(title, verdict, texts[-1], hidden, facts, [step(line, about) for line in lines], shown)


def step(line: Line, about: Line) -> Step:
    """A line of the log, as a question with its answer."""
    time = line["time"][:19].replace("T", " ")
    match line["step"]:
        case "begin":
            ends = zip(about["values"], about["lengths"], strict=True)
            rows = [
                (Cell(f"prompt {i}"), Cell(f"{v:.3g}"), Cell(f"at position {n - 1}")) for i, (v, n) in enumerate(ends)
            ]
            return Step(time, "Began; of each prompt its activation and length are known", (), tuple(rows))
        case "prompt":
            return Step(time, f"Paths into it on prompt {line['number']}", tuple(line.get("paths", NOT_KEPT)))
        case "together":
            return Step(
                time, "Components by their mean contribution over all prompts", *_together(line, len(about["values"]))
            )
        case "weights":
            heads = "".join(f" through head {h}" for h in line["through"])
            return Step(time, f"Feature {line['feature']} by its weights{heads}", *_weights(line.get("found")))
        case "hypothesis":
            return Step(time, f"Hypothesis: {line['text']}")
        case "reveal":
            return Step(time, "Reveal")
    return Step(time, f"Verdict: {line['verdict']}")


NOT_KEPT = ("(the log of this study holds no answers)",)


def _together(line: Line, total: int) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    if "components" not in line:
        return NOT_KEPT, ()
    return (), tuple((Cell(name), Cell(value=mean), Cell(f"in {n} of {total}")) for name, mean, n in line["components"])


def _weights(found: Line | None) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """What `tcircuits weights` prints, as rows."""
    if found is None:
        return NOT_KEPT, ()
    sides: dict[str, Any] = {
        "answers to tokens": found["tokens"]["largest"],
        "silenced by tokens": found["tokens"]["smallest"],
        "promotes": found["logits"]["promoted"],
        "suppresses": found["logits"]["suppressed"],
        "excited by": _features(found["earlier"]["excite"]),
        "inhibited by": _features(found["earlier"]["inhibit"]),
        "excites": _features(found["later"]["excited"]),
        "inhibits": _features(found["later"]["inhibited"]),
    }
    for head in found["heads"]:
        sides[f"head {head['layer']}/{head['head']}, norm {head['norm']:.3f}"] = head.get("largest", [])[:5]
    told = {what: tuple((str(t), float(v)) for t, v in side) for what, side in sides.items()}
    rows = tuple((Cell(what), Cell(tokens=side)) for what, side in told.items() if side)
    bare = tuple((f"{h['layer']}/{h['head']}", float(h["norm"])) for h in found["heads"] if "largest" not in h)
    return (), rows + (((Cell("heads below, OV norm"), Cell(tokens=bare)),) if bare else ())


def _features(side: Sequence[Any]) -> list[tuple[str, float]]:
    return [(f"L{layer} f{number}", value) for layer, number, value in side]
