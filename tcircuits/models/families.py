"""The table of model families: what their `config.json` means, and which tensors their checkpoints hold.

A new family is one entry of `FAMILIES`: a function from fields to `ModelConfig` switches, a layout, and the names of
the fields that change nothing. A field that no entry knows is an error, because ignoring one computes another model.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tcircuits.models import configure, layout
from tcircuits.models.config import ModelConfig
from tcircuits.models.fields import Fields
from tcircuits.models.layout import Tensor
from tcircuits.types import InputError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields of every family that change no number of an evaluation in the dtype that the caller chose. The second part are
# settings of text generation, which older releases wrote into the same file.
NEUTRAL = _names(
    """
    _name_or_path _num_labels architectures attn_implementation _attn_implementation_autoset bos_token_id
    chunk_size_feed_forward cls_token_id cross_attention_hidden_size decoder_start_token_id dtype eos_token_id
    finetuning_task gradient_checkpointing id2label initializer_range is_decoder label2id model_type num_labels
    output_attentions output_hidden_states pad_token_id prefix problem_type return_dict sep_token_id
    task_specific_params tokenizer_class tf_legacy_loss torch_dtype torchscript transformers_version
    transformers.js_config use_bfloat16 use_cache

    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_past output_scores
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
    """
)
# Fields of every family of which only these values are implemented.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
}


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        configure: reads the fields of `config.json` and returns the switches of `ModelConfig`.
        tensors: the checkpoint's tensors, given the configuration and the raw fields.
        head: name of the unembedding's tensor; in a tied model it may be there, equal to the embedding.
        prefixes: what tensor names may begin with, depending on which class saved them.
        buffers: patterns (regular expressions, without prefix) of tensors that hold no weights.
        neutral: fields that change nothing.
        fixed: fields of which only some values are implemented; () is null only.
        norms_in_file: whether norms have weights; where not, gains are 1 and biases 0.
        inner: where a configuration that wraps several models keeps the fields of its language model.
    """

    configure: Callable[[Fields], dict[str, Any]]
    tensors: Callable[[ModelConfig, Mapping[str, Any]], Iterable[Tensor]]
    head: str
    prefixes: tuple[str, ...]
    buffers: tuple[str, ...] = ()
    neutral: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    inner: str = ""
    norms_in_file: bool = True


_ROTARY_BUFFERS = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq")
_DROPOUT = _names("attention_dropout")
# Which cache a program makes; activation functions that nothing reads, because `hidden_activation` is what counts.
_GEMMA_NEUTRAL = _names("attention_dropout cache_implementation hidden_act")
_NO_IMAGES: Mapping[str, tuple[Any, ...]] = {"use_bidirectional_attention": (False,)}
# Of a model that reads images too, the fields that have nothing to do with text.
_WRAPPER = _names(
    "vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index boi_token_id eoi_token_id "
    "image_token_id"
)


def _relative(read: Callable[[Fields], dict[str, Any]], gain_offset: float = 0.0, **more: Any) -> Family:
    """An entry of Llama's kind: its tensor names, gains kept as their distance from `-gain_offset`."""
    usual = Family(
        configure=read,
        tensors=partial(layout.llama, gain_offset=gain_offset),
        head="lm_head.weight",
        prefixes=("model.",),
        buffers=_ROTARY_BUFFERS,
        neutral=_DROPOUT,
    )
    return replace(usual, **more)


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        configure=configure.gpt2,
        tensors=layout.gpt2,
        head="lm_head.weight",
        prefixes=("transformer.",),
        buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
        neutral=_names(
            """
            attn_pdrop embd_pdrop resid_pdrop n_ctx n_special predict_special_tokens reorder_and_upcast_attn
            summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
            """
        ),
    ),
    "gpt_neox": Family(
        configure=configure.gpt_neox,
        tensors=layout.gpt_neox,
        head="embed_out.weight",
        prefixes=("gpt_neox.",),
        buffers=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)", r"rotary_emb\.inv_freq"),
        neutral=_names("attention_dropout hidden_dropout classifier_dropout"),
    ),
    "plain": Family(configure=configure.plain, tensors=layout.plain, head="unembed", prefixes=("",)),
    "llama": _relative(
        configure.llama,
        neutral=_names("attention_dropout is_llama_config"),
        # pretraining_tp splits the same products; rope_interleaved says how a file's rotary pairs lie.
        fixed={"rope_interleaved": (False,), "pretraining_tp": (1,)},
    ),
    "mistral": _relative(configure.mistral),
    "qwen2": _relative(configure.qwen2, fixed={"use_mrope": (False,)}),
    "qwen3": _relative(configure.qwen3),
    "smollm3": _relative(configure.smollm3, fixed={"pretraining_tp": (1,)}),
    "olmo": _relative(configure.olmo, fixed={"clip_qkv": ()}, norms_in_file=False),
    "olmo2": _relative(configure.olmo2),
    "gemma2": _relative(configure.gemma2, 1.0, neutral=_GEMMA_NEUTRAL, fixed=_NO_IMAGES),
    # The reference reads attn_logit_softcapping and does nothing with it: nobody knows what a number there would mean.
    "gemma3_text": _relative(
        configure.gemma3, 1.0, neutral=_GEMMA_NEUTRAL, fixed={**_NO_IMAGES, "attn_logit_softcapping": ()}
    ),
    "gemma3": _relative(
        configure.gemma3,
        1.0,
        inner="text_config",
        prefixes=("language_model.model.", "model.language_model.", "language_model.", "model."),
        buffers=(*_ROTARY_BUFFERS, r"vision_tower\..*", r"multi_modal_projector\..*"),
        neutral=_GEMMA_NEUTRAL,
        fixed={**_NO_IMAGES, "attn_logit_softcapping": ()},
    ),
}


def family_of(raw: Mapping[str, Any]) -> Family:
    """The table's entry for a `config.json`.

    Raises:
        InputError: a `model_type` that the table does not have.
    """
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    close = difflib.get_close_matches(str(kind), FAMILIES, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"model_type is {kind!r:.60}; supported are {', '.join(FAMILIES)}{hint}")


def _switches(family: Family, f: Fields) -> dict[str, Any]:
    """The fields of a configuration read; what is wrong is noted in `f.problems`."""
    part = f.section(family.inner, NEUTRAL | family.neutral) if family.inner else f
    if part is None:
        f.wrong(family.inner, "an object")
        return {}
    switches = family.configure(part)
    for each in {id(f): f, id(part): part}.values():
        for name, allowed in {**FIXED, **(family.fixed if each is part else {})}.items():
            each.only(name, allowed)
    if family.inner and f.has("tie_word_embeddings"):  # the wrapper's own setting; most files give one of the two
        tied = f.flag("tie_word_embeddings", True)
        part.only("tie_word_embeddings", (tied,))
        switches["tied"] = tied
    return switches


def config_from_hf(raw: Mapping[str, Any], *, allow_unknown: Iterable[str] = ()) -> ModelConfig:
    """The configuration of a model from its raw `config.json`, in the spelling of any release.

    Args:
        raw: the JSON object as it is in the file (not what a library made of it).
        allow_unknown: names of fields to ignore although the table does not know them.

    Raises:
        InputError: everything that is missing, of a wrong type or value, or unknown, in one message.
    """
    if isinstance(allow_unknown, str):
        raise InputError(f"allow_unknown={allow_unknown!r} must be a list of names")
    family = family_of(raw)
    f = Fields(raw)
    switches = _switches(family, f)
    outer = _WRAPPER if family.inner else family.neutral
    unknown = [name for name in f.unknown(NEUTRAL | outer) if name not in {*allow_unknown}]
    if unknown:
        shown = [f"{name:.60}" for name in unknown[:20]]
        rest = f", and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        f.problems.append(
            f"unknown fields: {', '.join(shown)}{rest} (if they change nothing, pass allow_unknown={shown!r})",
        )
    if f.problems:
        raise InputError(f"configuration of a {raw['model_type']} model: " + "; ".join(f.problems))
    try:
        return ModelConfig(family=raw["model_type"], **switches)
    except ValueError as error:
        raise InputError(str(error)) from error
