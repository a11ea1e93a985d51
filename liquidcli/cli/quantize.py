"""`liquid quantize`: a GGUF to a smaller one, with llama-quantize's words."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..ui.console import out
from .options import DryRun, Json, Verbose, option

_SOURCE_SUFFIX = re.compile(
    r"([-._](F32|F16|FP16|FP32|BF16|I?Q\d\w*|TQ\d\w*|MXFP4\w*))?(-\d{5}-of-\d{5})?$", re.IGNORECASE
)
_FORM = "liquid quantize IN [OUT] TYPE [NTHREADS]"


def _refuse_q(given: bool) -> None:
    if given:
        raise UsageError("-q is not used here: --quiet, or the type as a word", hint=_FORM)


def _refuse_option(value: str | None) -> None:
    """-o and --quantize are how others name what are plain words here."""
    if value:
        raise UsageError(f"OUT and TYPE are words, not options ({value})", hint=_FORM)


Words = Annotated[list[str], typer.Argument(metavar="IN [OUT] TYPE [NTHREADS]", show_default=False)]
Imatrix = Annotated[
    Path | None,
    option("--imatrix", metavar="FILE", help="Importance matrix, as liquid imatrix or llama-imatrix makes it."),
]
IncludeWeights = Annotated[
    list[str] | None,
    option("--include-weights", metavar="PART", help="--imatrix counts only where PART is in the name; repeatable."),
]
ExcludeWeights = Annotated[
    list[str] | None,
    option("--exclude-weights", metavar="PART", help="--imatrix does not count where PART is in the name; repeatable."),
]
TensorType = Annotated[
    list[str] | None,
    option("--tensor-type", metavar="RE=TYPE", help="This type for tensors whose name matches; repeatable."),
]
TensorTypeFile = Annotated[
    list[Path] | None, option("--tensor-type-file", metavar="FILE", help="RE=TYPE words, one after the other.")
]
OutputType = Annotated[str | None, option("--output-tensor-type", metavar="TYPE", help="This type for output.weight.")]
EmbeddingType = Annotated[
    str | None, option("--token-embedding-type", metavar="TYPE", help="This type for the embeddings.")
]
OverrideKV = Annotated[
    list[str] | None, option("--override-kv", metavar="KEY=TYPE:VALUE", help="Write this key so; repeatable.")
]
KeepSplit = Annotated[bool, option("--keep-split", help="As many files as IN has, instead of one.")]
Leave = Annotated[bool, option("--leave-output-tensor", help="Leave output.weight as it is.")]
Pure = Annotated[bool, option("--pure", help="The same type for every matrix.")]
Requantize = Annotated[
    bool, option("--allow-requantize", help="Quantize again what is quantized already; costs quality.")
]
All = Annotated[bool, option("--all", help="A table of every type: size, memory, does it fit here; writes nothing.")]
Fit = Annotated[
    str | None,
    option(
        "--fit", metavar="SIZE|auto", help="Instead of a TYPE: the largest within 8G, or within this machine's memory."
    ),
]
TargetBpw = Annotated[
    float | None,
    option("--target-bpw", metavar="N", help="Instead of a TYPE: the largest with at most N bits per weight."),
]
FitCtx = Annotated[
    int,
    option("-c", "--ctx-size", metavar="N", min=0, help="--all, --fit: count the memory of a context of N tokens too."),
]
LongQuiet = Annotated[bool, option("--quiet", help="Only results, no talk.")]
RefuseQ = Annotated[bool, option("-q", help="", hidden=True, is_eager=True, callback=_refuse_q)]
Refused = Annotated[
    str | None,
    option(
        "-o", "--output", "--outfile", "--quantize", "--type", help="", hidden=True, is_eager=True,
        callback=_refuse_option,
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The positional words, sorted."""

    source: str
    output: Path | None
    type: str | None
    n_threads: int | None


def quantize(
    words: Words,
    imatrix: Imatrix = None,
    include_weights: IncludeWeights = None,
    exclude_weights: ExcludeWeights = None,
    tensor_type: TensorType = None,
    tensor_type_file: TensorTypeFile = None,
    output_tensor_type: OutputType = None,
    token_embedding_type: EmbeddingType = None,
    leave_output_tensor: Leave = False,
    pure: Pure = False,
    allow_requantize: Requantize = False,
    keep_split: KeepSplit = False,
    override_kv: OverrideKV = None,
    dry_run: DryRun = False,
    all: All = False,
    fit: Fit = None,
    target_bpw: TargetBpw = None,
    n_ctx: FitCtx = 0,
    verbose: Verbose = False,
    json: Json = False,
    quiet: LongQuiet = False,
    q: RefuseQ = False,
    refused: Refused = None,
) -> None:
    """Make a model file smaller. IN is a file or a stored model.

    TYPE is a name as in llama-quantize, like Q4_K_M, Q8_0 or IQ3_XXS, or its number; --all lists them with their sizes.
    COPY changes no tensor: it joins the files of a split model, or changes keys.
    OUT lies beside IN and is named after it if it is not given; its path is printed. A job of
    hours that was stopped goes on when the same command is typed again.
    """
    from .. import quant
    from ..hub.resolve import resolve_model
    from .quantize_shown import show_plan, show_result

    out.configure(json=json, quiet=quiet)
    is_chosen = fit is not None or target_bpw is not None
    request = sort_words(words, needs_type=not (all or is_chosen))
    if all and (is_chosen or request.output or request.n_threads):
        raise UsageError("--all only lists sizes", hint="liquid quantize IN --all")
    if fit is not None and target_bpw is not None:
        raise UsageError("--fit and --target-bpw both choose the type", hint="leave one of them out")
    if include_weights and exclude_weights:
        raise UsageError("--include-weights and --exclude-weights exclude each other", hint="leave one of them out")
    if (include_weights or exclude_weights) and not imatrix:
        raise UsageError("--include-weights and --exclude-weights choose from an imatrix", hint="add --imatrix FILE")
    listed = [word for path in tensor_type_file or () for word in quant.words_of_file(path)]
    options = quant.Options(
        quant.overrides([*(tensor_type or ()), *listed]),
        quant.optional_tensor_type(output_tensor_type),
        quant.optional_tensor_type(token_embedding_type),
        leave_output_tensor,
        pure,
        allow_requantize,
        keep_split,
        quant.key_overrides(override_kv or ()),
        tuple(include_weights or ()),
        tuple(exclude_weights or ()),
    )
    with out.progress(request.source, None) as bar:
        source = resolve_model(request.source, progress=bar.update).path
    if all:
        _list_sizes(source, options, imatrix, n_ctx)
        return
    name, reason = request.type, None
    if name is None:
        name, reason = _chosen(source, options, imatrix, fit, target_bpw, n_ctx)
        out.talk(reason)
    plan = quant.plan_path(source, name, options, imatrix)
    target = request.output or _beside(source, is_file=Path(request.source).is_file(), name=plan.type.name)
    if dry_run:
        show_plan(plan, quant.output_paths(plan, target), reason, verbose=verbose)
        return
    quant.check_importance(plan)
    with out.progress(f"quantizing to {plan.type.name}", plan.source_bytes) as bar:
        result = quant.run(plan, target, n_threads=request.n_threads, progress=bar.update)
    show_result(result, reason)


def sort_words(words: list[str], *, needs_type: bool) -> Request:
    """IN TYPE, IN OUT TYPE, either with NTHREADS; without a type where an option chooses it."""
    from ..quant import find_file_type

    source, rest = words[0], list(words[1:])
    if find_file_type(source) and not Path(source).exists():
        raise UsageError(f"{source} is a type, and IN comes first", hint=_FORM)
    output = kind = None
    if rest and not (find_file_type(rest[0]) if needs_type else rest[0].isdecimal()):
        output = Path(rest.pop(0))
    if needs_type:
        kind = _type_word(rest, output)
    elif output and find_file_type(str(output)):
        raise UsageError(f"{output} is a type, which is chosen by an option already", hint=_FORM)
    n_threads = _thread_count(rest.pop(0)) if rest else None
    if rest:
        raise UsageError(f"{rest[0]!r} is one word too many", hint=_FORM)
    return Request(source, output, kind, n_threads)


def _type_word(rest: list[str], output: Path | None) -> str:
    from ..quant import FILE_TYPES, find_file_type

    hint = f"{_FORM}, TYPE is one of {', '.join(FILE_TYPES)}, COPY"
    if not rest and output and not output.suffix and len(output.parts) == 1:
        near = difflib.get_close_matches(str(output).upper(), FILE_TYPES, 3)
        raise UsageError(
            f"{str(output)!r} is no quantization type", hint=f"did you mean {', '.join(near)}?" if near else hint
        )
    if not rest:
        raise UsageError(f"a type was expected after {output or 'IN'}", hint=hint)
    found = find_file_type(rest[0])
    if found is None:
        raise UsageError(f"{rest[0]!r} is no quantization type", hint=hint)
    del rest[0]
    return found.name


def _thread_count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(f"{word!r} is no number of threads", hint=_FORM)
    return int(word)


def _chosen(
    source: Path, options: Any, imatrix: Path | None, fit: str | None, target_bpw: float | None, n_ctx: int
) -> tuple[str, str]:
    """A type's name, and why it."""
    from .. import quant
    from ..gguf_file import open_gguf
    from ..runtime.machine import available_bytes
    from .quantize_shown import memory_at

    with open_gguf(source) as f:
        plans = quant.plans_of(f, options, imatrix)
        if fit is None:
            choice = quant.closest_below(plans, target_bpw or 0.0)
        elif fit.lower() != "auto" and not n_ctx:
            choice = quant.largest_that_fits(plans, quant.budget_bytes(fit), budget_name=fit)
        else:
            budget = available_bytes() if fit.lower() == "auto" else quant.budget_bytes(fit)
            if budget is None:
                raise UsageError("how much memory is available here is unknown", hint="say it: --fit 8G")
            name = "" if fit.lower() == "auto" else fit
            choice = quant.largest_that_fits(plans, budget, memory_at(f, n_ctx)[1], budget_name=name)
    return choice.plan.type.name, choice.reason


def _list_sizes(source: Path, options: Any, imatrix: Path | None, n_ctx: int) -> None:
    from .. import quant
    from ..gguf_file import open_gguf
    from ..runtime.machine import available_bytes
    from .quantize_shown import memory_at, show_sizes

    with open_gguf(source) as f:
        show_sizes(quant.plans_of(f, options, imatrix), *memory_at(f, n_ctx), available_bytes())


def _beside(source: Path, *, is_file: bool, name: str) -> Path:
    """Beside a file of one's own; in the current folder for a stored model, whose store is not ours to write in."""
    stem = source.name.removesuffix(".gguf")
    stem = _SOURCE_SUFFIX.sub("", stem, count=1) or stem
    return (source.parent if is_file else Path()) / f"{stem}-{name}.gguf"
